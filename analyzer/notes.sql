-- What people say of features, by dictionary, so of every run in this file. Written by `explainer.notes.Notes` alone, at a
-- person's word, never by a service. Not in the digest. Text comes from outside: whoever shows it escapes it.
CREATE TABLE IF NOT EXISTS names (         -- all of them are kept, the newest of a feature counts
  id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL,
  label TEXT,                              -- NULL: taken back, the explainer's counts again
  predicate TEXT, author TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS names_by_feature ON names (dictionary_hash, feature, id);
CREATE TABLE IF NOT EXISTS notes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, wall_ns INTEGER NOT NULL, edited_wall_ns INTEGER,   -- NULL: never edited
  dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, author TEXT NOT NULL,
  owner TEXT,                              -- SHA-256 of what its writer's browser keeps; NULL: written on the command line
  text TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS notes_by_feature ON notes (dictionary_hash, feature, id);
