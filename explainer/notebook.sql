-- Version 1 of the explainer's tables, in the analyzer's file. Written by the explain service alone, never by the analyzer.
-- What cannot be computed is NULL. Prose comes from outside: whoever shows it escapes it.
CREATE TABLE explanations (                -- every version; the newest of a feature is the current one
  id INTEGER PRIMARY KEY, dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, version INTEGER NOT NULL,
  label TEXT NOT NULL, description TEXT NOT NULL, predicate TEXT NOT NULL, clauses INTEGER NOT NULL,       -- predicate: explainer/grammar.py
  source TEXT NOT NULL,                    -- 'rules', 'llm:<model>'
  made_from TEXT NOT NULL,                 -- 'here': frames of this database; else where it was shipped from
  created_wall_ns INTEGER NOT NULL, weights_hash TEXT NOT NULL, policy_version INTEGER NOT NULL, evidence_hash TEXT NOT NULL,
  stale TEXT,                              -- why its score is of another time; NULL while it is not
  UNIQUE (dictionary_hash, feature, version)) STRICT;
CREATE TABLE scores (                      -- basis: 'held_out' (when it was made), 'live' (checked again and again; replaced)
  explanation_id INTEGER NOT NULL REFERENCES explanations(id), basis TEXT NOT NULL, scored_wall_ns INTEGER NOT NULL,
  weights_hash TEXT NOT NULL, policy_version INTEGER NOT NULL, frames INTEGER NOT NULL, positives INTEGER NOT NULL, episodes INTEGER NOT NULL,
  balanced_accuracy REAL, low REAL, high REAL, sensitivity REAL, specificity REAL, f1 REAL, shuffled REAL, base_f1 REAL, base_rate REAL,
  undefined REAL, PRIMARY KEY (explanation_id, basis)) STRICT, WITHOUT ROWID;
CREATE TABLE features (                    -- what the explainer last saw of each feature, explained or not
  dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, density REAL, held_out_positives INTEGER NOT NULL, live INTEGER NOT NULL,
  frames INTEGER NOT NULL, PRIMARY KEY (dictionary_hash, feature)) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (                    -- proposals that did not become a version, and why
  id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, source TEXT NOT NULL,
  reason TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
CREATE INDEX attempts_by_feature ON attempts (dictionary_hash, feature, id);
CREATE TABLE cited (                       -- frames that a sentence is about: retention keeps them
  boot TEXT NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
  kind TEXT NOT NULL, ref INTEGER NOT NULL) STRICT;                                       -- 'explanation' or 'line', and its id
CREATE INDEX cited_by_ref ON cited (kind, ref);
CREATE TABLE narration (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, boot TEXT NOT NULL, env INTEGER NOT NULL, kind TEXT NOT NULL,  -- 'begin', 'surprise', 'regime', 'episode', 'drift', 'steady'
  seq INTEGER NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, time_s REAL NOT NULL, wall_ns INTEGER NOT NULL,
  episode INTEGER NOT NULL, episode_step INTEGER NOT NULL, text TEXT NOT NULL, action TEXT NOT NULL,
  features TEXT NOT NULL,                  -- JSON array, see explainer/narrator.py
  source TEXT NOT NULL DEFAULT 'template') STRICT;
CREATE TABLE llm_endpoints (               -- by address and model, never a key
  endpoint TEXT NOT NULL, model TEXT NOT NULL, form TEXT NOT NULL, updated_wall_ns INTEGER NOT NULL,
  PRIMARY KEY (endpoint, model)) STRICT, WITHOUT ROWID;                                   -- form: 'json_schema', 'json_object', 'text'
CREATE TABLE llm_usage (minute INTEGER PRIMARY KEY, calls INTEGER NOT NULL, tokens INTEGER NOT NULL) STRICT;    -- Unix minutes
CREATE TABLE llm_cache (key TEXT PRIMARY KEY, answer TEXT NOT NULL, wall_ns INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE explainer_state (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;      -- 'status': JSON
CREATE TABLE user_names (                  -- of older builds: version 4 moves them to `names`, see analyzer/notes.sql
  id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, label TEXT NOT NULL,
  predicate TEXT) STRICT;
