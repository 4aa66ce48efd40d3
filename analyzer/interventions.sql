-- What was done to the agent, by whom and why (docs/steering.md); the row column `intervention` of batches holds `number`.
CREATE TABLE interventions (
  run TEXT NOT NULL, boot TEXT NOT NULL,
  number INTEGER NOT NULL,                 -- of the boot, from 0
  id TEXT NOT NULL, author TEXT NOT NULL, reason TEXT NOT NULL,
  edit TEXT NOT NULL,                      -- JSON: operation, strength, unit, feature, direction, dictionary, dictionary_hash, output, env, ttl_s, max_effect
  condition TEXT,                          -- NULL: none
  shadow INTEGER NOT NULL,                 -- 1: measured, not applied
  first_seq INTEGER,                       -- first frame that it may act on; NULL: its start was not received
  next_seq INTEGER,                        -- first frame that it no longer acts on; NULL while it is in force
  cause TEXT,                              -- of its end: expired, author_gone, released, released_all, closed, error
  started_wall_ns INTEGER, ended_wall_ns INTEGER,
  PRIMARY KEY (run, boot, number)) STRICT, WITHOUT ROWID;
CREATE TABLE effects (
  run TEXT NOT NULL, boot TEXT NOT NULL, number INTEGER NOT NULL,
  seq INTEGER NOT NULL,                    -- frame that it was measured on
  kind TEXT NOT NULL,                      -- kl: nats; sd: standard deviations of the action
  value REAL,                              -- NULL: not known
  factor REAL NOT NULL,                    -- what a limit on the effect left of the change; 1: all
  monotonic_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
  PRIMARY KEY (run, boot, number, seq)) STRICT, WITHOUT ROWID;
