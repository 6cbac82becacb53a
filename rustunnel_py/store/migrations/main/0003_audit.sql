-- Who did what. `details` is the event as JSON, in the shapes of hub/audit.py; instants are whole microseconds
-- since 1970, UTC.

CREATE TABLE audit_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at INTEGER NOT NULL,
    event TEXT NOT NULL,
    owner TEXT, -- NULL: nobody who is known
    token_id TEXT,
    details TEXT NOT NULL
);
CREATE INDEX audit_log_by_event ON audit_log (event, seq);
CREATE INDEX audit_log_by_age ON audit_log (at);

CREATE INDEX tunnel_log_by_end ON tunnel_log (unregistered_at);
