-- Language models: what was given, the text of the tokens that were seen, and one row for each token that was read.
CREATE TABLE prompts (                     -- one sequence: what was given, and what the model wrote after it
  run TEXT NOT NULL, boot TEXT NOT NULL, prompt INTEGER NOT NULL, env INTEGER NOT NULL, episode INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
  given INTEGER NOT NULL,                  -- tokens that were given
  text TEXT NOT NULL, labels TEXT NOT NULL,                                               -- labels: JSON, text by name
  PRIMARY KEY (run, boot, prompt)) STRICT, WITHOUT ROWID;
CREATE TABLE vocabulary (
  run TEXT NOT NULL, boot TEXT NOT NULL, token INTEGER NOT NULL,
  text TEXT NOT NULL,                      -- for people: what is not a whole character stands as U+FFFD
  bytes BLOB NOT NULL,                     -- UTF-8, or a part of a character
  PRIMARY KEY (run, boot, token)) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
  run TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL, prompt INTEGER NOT NULL, position INTEGER NOT NULL, token INTEGER NOT NULL,
  special INTEGER NOT NULL, generated INTEGER NOT NULL, logprob REAL,                     -- nat; NULL where unknown
  PRIMARY KEY (run, boot, seq)) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_token ON tokens (token, boot, seq);
CREATE INDEX tokens_by_prompt ON tokens (boot, prompt, position);
