CREATE TABLE watched (                     -- frames in which a watchpoint's predicate came true; written by whoever the user commands
  id INTEGER PRIMARY KEY, boot TEXT NOT NULL, env INTEGER NOT NULL, seq INTEGER NOT NULL, time_s REAL NOT NULL, wall_ns INTEGER NOT NULL,
  episode INTEGER NOT NULL, episode_step INTEGER NOT NULL, predicate TEXT NOT NULL,
  clip TEXT,                               -- where it was saved; NULL: none
  acted TEXT,                              -- what came of the command or webhook; NULL: none was asked for
  UNIQUE (boot, env, seq, predicate)) STRICT
