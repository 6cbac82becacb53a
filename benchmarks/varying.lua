-- Each request differs from the one before: another target, another cookie.
local count = 0

function request()
  count = count + 1
  wrk.headers["Cookie"] = "session=0123456789abcdef; seen=" .. count
  return wrk.format("GET", "/?page=" .. count)
end
