-- Exchanges as kept, redacted before they come here. Instants are whole microseconds since 1970, UTC.

CREATE TABLE captured_tunnels (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL
);

CREATE TABLE captures (
    seq INTEGER PRIMARY KEY, -- the order of capture over all tunnels: clocks may run backwards
    tunnel INTEGER NOT NULL,
    id BLOB NOT NULL, -- 16 bytes
    pinned INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL, -- bytes, what retention counts
    at INTEGER NOT NULL, -- when the request's head was complete
    status INTEGER NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    facts BLOB NOT NULL, -- numbers and short texts that nobody searches for, in MessagePack
    request_headers BLOB NOT NULL, -- names and values in turn, in MessagePack, as are the next
    response_headers BLOB NOT NULL,
    request_body BLOB NOT NULL,
    response_body BLOB NOT NULL,
    messages BLOB -- of a WebSocket or an event stream, in MessagePack
);
CREATE INDEX captures_of_tunnel ON captures (tunnel, seq, pinned, size);
CREATE INDEX captures_by_id ON captures (id);
CREATE INDEX captures_pinned ON captures (tunnel, size) WHERE pinned = 1;
