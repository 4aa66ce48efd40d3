-- Version 2: numbers of the training loop (Tap.log), one row per name and time of logging. seq: their own count, not the frames'.
CREATE TABLE scalars (
  run TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL,
  step INTEGER NOT NULL,                   -- the agent's step that came next
  monotonic_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, policy_version INTEGER NOT NULL,
  value REAL,                              -- NULL: NaN was logged
  PRIMARY KEY (run, boot, name, seq)) STRICT, WITHOUT ROWID;
