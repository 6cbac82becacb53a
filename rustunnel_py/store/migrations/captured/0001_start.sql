-- What can be lost: captures and telemetry get their tables here.

CREATE TABLE begun (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at INTEGER NOT NULL -- whole microseconds since 1970, UTC
);
INSERT INTO begun (one, at) VALUES (1, CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
