-- Telemetry of tunnels. Instants are whole microseconds since 1970, UTC; durations are milliseconds.

CREATE TABLE metrics_points (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tunnel_id TEXT NOT NULL,
    captured_at INTEGER NOT NULL,
    ttl INTEGER NOT NULL,
    opn INTEGER NOT NULL,
    rt1_ms REAL,
    p90_ms REAL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE INDEX metrics_points_by_tunnel ON metrics_points (tunnel_id, captured_at);
CREATE INDEX metrics_points_by_age ON metrics_points (captured_at);

CREATE TABLE request_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tunnel_id TEXT NOT NULL,
    ingested_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    status INTEGER NOT NULL,
    duration_ms REAL NOT NULL,
    response_bytes INTEGER,
    error INTEGER NOT NULL,
    is_websocket INTEGER NOT NULL
);
CREATE INDEX request_log_by_tunnel ON request_log (tunnel_id, ingested_at, seq);
CREATE INDEX request_log_by_age ON request_log (ingested_at);
