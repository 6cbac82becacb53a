-- Tunnels with a lease, and logins of people. Instants are whole microseconds since 1970, UTC; hashes are SHA-256
-- in hex, what they are of is nowhere.

CREATE TABLE leases (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    token_id TEXT, -- NULL: the admin token
    token_label TEXT,
    slug TEXT NOT NULL,
    hostname TEXT NOT NULL,
    status TEXT NOT NULL,
    requested_port INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    heartbeat_at INTEGER,
    expires_at INTEGER,
    stopped_at INTEGER,
    last_error TEXT,
    run_hash TEXT NOT NULL UNIQUE,
    agent_hash TEXT NOT NULL UNIQUE
);
CREATE INDEX leases_by_owner ON leases (owner, seq);
CREATE INDEX leases_by_host ON leases (owner, hostname, seq);
CREATE UNIQUE INDEX leases_by_slug ON leases (slug) WHERE status IN ('creating', 'active', 'stopping');

CREATE TABLE logins (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    token_id TEXT, -- who approved it; NULL: the admin token
    email TEXT NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE login_pairs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    login_id TEXT NOT NULL REFERENCES logins (id) ON DELETE CASCADE,
    parent_id TEXT, -- the pair whose refresh token brought this one
    access_hash TEXT NOT NULL UNIQUE,
    refresh_hash TEXT NOT NULL UNIQUE,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    replaced_at INTEGER, -- its refresh token was used
    used INTEGER NOT NULL DEFAULT 0 -- 1: a client showed one of its tokens, so it has the pair
);
CREATE INDEX login_pairs_by_login ON login_pairs (login_id, seq);
