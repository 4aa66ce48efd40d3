-- What the agent does with and without an intervention, beside its measured effect (docs/steering.md).
CREATE TABLE outcomes (
  run TEXT NOT NULL, boot TEXT NOT NULL, number INTEGER NOT NULL,
  seq INTEGER NOT NULL,                    -- frame that it was measured on
  measure TEXT NOT NULL,                   -- share: probabilities of actions; value: numbers of the action
  actions TEXT NOT NULL,                   -- JSON: numbers of the actions or components, at most 16
  steered TEXT NOT NULL, unsteered TEXT NOT NULL,  -- JSON: a number for each
  PRIMARY KEY (run, boot, number, seq)) STRICT, WITHOUT ROWID;
