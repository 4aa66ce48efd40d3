-- Language models: which texts were asked for with and without an intervention (docs/language-models.md).
CREATE TABLE pairs (
  run TEXT NOT NULL, boot TEXT NOT NULL, prompt INTEGER NOT NULL,
  pair TEXT NOT NULL,                      -- what two texts of one prompt have in common; '' of one that was asked for alone
  arm TEXT NOT NULL,                       -- plain or steered
  PRIMARY KEY (run, boot, prompt)) STRICT, WITHOUT ROWID;
