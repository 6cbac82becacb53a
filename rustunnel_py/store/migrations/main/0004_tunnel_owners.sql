-- Whose a tunnel was that ended without a captured request: asked by its id, answered by its newest registration.

CREATE INDEX tunnel_log_by_tunnel ON tunnel_log (tunnel_id, seq);
