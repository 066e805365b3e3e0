-- The clocks of the machine as they were last seen: offset_ms is the wall clock minus the time since
-- boot; no lease counts as run out before that boot is this old.
CREATE TABLE clock (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    boot_id TEXT NOT NULL,
    offset_ms INTEGER NOT NULL,
    not_before_ns INTEGER NOT NULL
) STRICT;
