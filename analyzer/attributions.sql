-- Why some actions: what each active feature contributed to each action's score in one frame (docs/why-this-action.md).
CREATE TABLE attributions (
  run TEXT NOT NULL, boot TEXT NOT NULL, env INTEGER NOT NULL, seq INTEGER NOT NULL, step INTEGER NOT NULL,
  monotonic_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, dictionary_hash TEXT NOT NULL,
  kind TEXT NOT NULL,                      -- of the scores: 'logits', 'means', 'q', 'scores'
  chosen INTEGER,                          -- number of the discrete action that was taken; NULL where there is none
  action_count INTEGER NOT NULL,           -- actions that the policy scores; `names` may be fewer
  names TEXT NOT NULL,                     -- JSON list, '' where an action has no name
  actions BLOB NOT NULL,                   -- (a,) int32 their numbers
  total BLOB NOT NULL, bias BLOB NOT NULL, error BLOB NOT NULL, rest BLOB NOT NULL,  -- (a,) float32
  features BLOB NOT NULL,                  -- (f,) int32
  activations BLOB NOT NULL,               -- (f,) float32
  contributions BLOB NOT NULL,             -- (f, a) float32
  PRIMARY KEY (run, boot, env, seq)) STRICT;
