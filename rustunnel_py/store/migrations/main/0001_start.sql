-- Who: a user owns names, tunnels and history. Every API token has a user of its own; the admin token
-- stands for the first user. Instants are whole microseconds since 1970, UTC. Ids are UUIDs in lower case.

CREATE TABLE users (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE organisations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE memberships (
    user_id TEXT NOT NULL REFERENCES users (id),
    organisation_id TEXT NOT NULL REFERENCES organisations (id),
    role TEXT NOT NULL,
    PRIMARY KEY (user_id, organisation_id)
) WITHOUT ROWID;

CREATE TABLE tokens (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE, -- SHA-256 of the raw token, hex; the raw token is nowhere
    user_id TEXT NOT NULL REFERENCES users (id),
    label TEXT NOT NULL,
    scope TEXT,
    role TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER,
    max_tunnels INTEGER,
    protocols TEXT, -- comma-separated; NULL: all
    tunnel_count INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE names (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- higher: remembered later
    owner TEXT NOT NULL,
    machine TEXT NOT NULL,
    protocol TEXT NOT NULL,
    local_addr TEXT NOT NULL,
    address TEXT NOT NULL,
    tunnel_id TEXT NOT NULL,
    instance TEXT,
    released INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    UNIQUE (owner, machine, protocol, local_addr, address)
);
CREATE INDEX names_by_owner ON names (owner, seq);
CREATE INDEX names_by_address ON names (owner, address);
CREATE INDEX names_by_use ON names (used_at);

CREATE TABLE tunnel_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of history: clocks may run backwards
    id TEXT NOT NULL UNIQUE,
    tunnel_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    protocol TEXT NOT NULL,
    label TEXT NOT NULL,
    session_id TEXT NOT NULL, -- the public one
    token_id TEXT,
    token_label TEXT,
    registered_at INTEGER NOT NULL,
    unregistered_at INTEGER
);
CREATE INDEX tunnel_log_by_owner ON tunnel_log (owner, protocol, seq);
CREATE INDEX tunnel_log_by_protocol ON tunnel_log (protocol, seq);
CREATE INDEX tunnel_log_open ON tunnel_log (tunnel_id) WHERE unregistered_at IS NULL;

CREATE TABLE heartbeat (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last_seen INTEGER NOT NULL -- when a server last wrote here: the end of what a crash left open
);
