-- Layout 1 of a dlock schema. Public: the README of dlock-postgres describes it, other tools may read it.
CREATE SCHEMA IF NOT EXISTS dlock;

-- What must survive everything, in a single row.
CREATE TABLE IF NOT EXISTS dlock.meta (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one), -- a key, so that publications FOR ALL TABLES allow updates
    block     bigint  NOT NULL CHECK (block BETWEEN 1 AND 2147483646), -- the upper half of tokens, raised by each epoch
    max_lease bigint  NOT NULL CHECK (max_lease > 0),       -- the longest lease ever granted, in milliseconds
    raised    bigint  NOT NULL,                             -- when the block was raised last, in minutes since 1970
    origin    text    NOT NULL DEFAULT ''                   -- where the last epoch was made
);

-- The life of the server since its last crash, failover or restore, which empty this table.
CREATE UNLOGGED TABLE IF NOT EXISTS dlock.epoch (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    block  bigint  NOT NULL,
    owed   bigint  NOT NULL,                                -- what leases from before may last, in milliseconds
    origin text    NOT NULL                                 -- system identifier / timeline / database / this table
);

-- The last tokens: 1024 counters for all names.
CREATE UNLOGGED TABLE IF NOT EXISTS dlock.counters (
    stripe int    PRIMARY KEY,                              -- key modulo 1024
    token  bigint NOT NULL
) WITH (fillfactor = 10, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 1000000000);

-- One row for each lock that is held, and for each whose holder did not leave cleanly until that is settled.
CREATE UNLOGGED TABLE IF NOT EXISTS dlock.holders (
    key     bigint  PRIMARY KEY,                            -- of the advisory lock
    name    bytea   NOT NULL,                               -- prefix and name in UTF-8, whatever the database's encoding
    token   bigint  NOT NULL,                               -- fencing token
    owed    bigint  NOT NULL,                               -- what the next holder settles if this row is still here
    prev    bigint  NOT NULL DEFAULT 0,                     -- what this holder had to settle
    waiting boolean NOT NULL DEFAULT false,                 -- somebody wants to be notified of the release
    holder  bytea   NOT NULL DEFAULT ''                     -- who holds it, JSON, for people
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_analyze_threshold = 1000000000);
