-- Each request goes to the next tunnel: `wrk -s round_robin.lua URL -- LABEL AGENTS TUNNELS` asks for
-- LABEL-AGENT-TUNNEL.localhost, the first tunnels of all agents, then the second ones; both are numbered from 0.
local requests = {}
local last = 0

function init(args)
  for tunnel = 0, tonumber(args[3]) - 1 do
    for agent = 0, tonumber(args[2]) - 1 do
      wrk.headers["Host"] = args[1] .. "-" .. agent .. "-" .. tunnel .. ".localhost"
      table.insert(requests, wrk.format("GET", "/"))
    end
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
