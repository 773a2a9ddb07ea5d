-- Layout 1 of a lock file (user_version 1). Public: README.md describes it, other tools may read it.

-- One row for each lock that is held, none for a free one.
CREATE TABLE claim (
    name       TEXT    NOT NULL PRIMARY KEY, -- prefix and name of the lock
    claim      TEXT    NOT NULL,             -- id of the claim, 32 hexadecimal digits
    token      INTEGER NOT NULL,             -- fencing token
    version    INTEGER NOT NULL,             -- raised by each renewal
    lease_ms   INTEGER NOT NULL,             -- lease in milliseconds, rounded up
    expires_ns INTEGER NOT NULL,             -- end of the lease in nanoseconds of the clock named by `clock`
    clock      TEXT    NOT NULL,             -- whose boot clock: boot id + offset of the time namespace
    holder     TEXT    NOT NULL              -- who holds it, JSON, for people
) STRICT, WITHOUT ROWID;

-- The last token of the whole file, in a single row. It starts at the wall clock's microseconds, so that tokens go on
-- rising when a lost or damaged file is made anew: below a million grants a second they never overtake that clock, and
-- they stay below 2^53 until the year 2255.
CREATE TABLE counter (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;

INSERT INTO counter (id, last) VALUES (1, CAST(unixepoch('subsec') * 1000 AS INTEGER) * 1000);

PRAGMA application_id = 1145851723; -- "DLOK"
PRAGMA user_version = 1;
