-- Version 1. One writer per table: the analyzer writes all of these. Times are the agent's clocks unless named received/committed.
-- What cannot be computed is NULL. Blobs: see analyzer/blobs.py (columns: zstd of msgpack; codes: CSR; matrices: little-endian float32).
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;      -- 'run': the one run this file belongs to

CREATE TABLE boots (                       -- one process of the agent
  run TEXT NOT NULL, boot TEXT NOT NULL, manifest_hash TEXT, started_wall_ns INTEGER, ended INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (run, boot)) STRICT, WITHOUT ROWID;
CREATE TABLE manifests (hash TEXT PRIMARY KEY, run TEXT NOT NULL, boot TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;  -- body: JSON
CREATE TABLE dictionaries (                -- what gives features: a dictionary, or the neurons of a tap point
  hash TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, point TEXT NOT NULL, features INTEGER NOT NULL,
  cfg TEXT NOT NULL, card TEXT, path TEXT) STRICT, WITHOUT ROWID;                         -- kind: 'neurons', 'topk', 'relu', 'jumprelu'
CREATE TABLE sections (                    -- a stretch of one boot analysed by one dictionary without interruption
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, boot TEXT NOT NULL, point TEXT NOT NULL, dictionary_hash TEXT NOT NULL,
  manifest_hash TEXT NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, reason TEXT NOT NULL,
  mismatch INTEGER NOT NULL DEFAULT 0) STRICT;                                            -- reason: 'start', 'resume', 'swap', 'manifest'

CREATE TABLE batches (                     -- one FrameBatch; id rises with commits, so a reader asks for id > last
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, boot TEXT NOT NULL, first_seq INTEGER NOT NULL, rows INTEGER NOT NULL,
  manifest_hash TEXT NOT NULL, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL,
  first_monotonic_ns INTEGER NOT NULL, last_monotonic_ns INTEGER NOT NULL, first_wall_ns INTEGER NOT NULL, last_wall_ns INTEGER NOT NULL,
  columns BLOB NOT NULL, UNIQUE (run, boot, first_seq)) STRICT;
CREATE TABLE codes (                       -- the active features of a batch at one tap point
  batch_id INTEGER NOT NULL REFERENCES batches(id), section_id INTEGER NOT NULL REFERENCES sections(id),
  active INTEGER NOT NULL,                 -- stored values
  rows BLOB,                               -- (encoded,) int32 rows of the batch that were encoded; NULL: all of them
  encoded INTEGER NOT NULL,                -- rows that had finite activations; others are missing, not inactive
  non_finite INTEGER NOT NULL,             -- rows refused because an activation was NaN or infinite
  sse REAL, sst REAL,                      -- sums over the encoded rows: |y - y_hat|^2, |y - card mean|^2; NULL for neurons
  blob BLOB NOT NULL, PRIMARY KEY (batch_id, section_id)) STRICT, WITHOUT ROWID;
CREATE TABLE episodes (
  run TEXT NOT NULL, boot TEXT NOT NULL, env INTEGER NOT NULL, episode INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
  steps INTEGER NOT NULL, return REAL,     -- NULL where a reward was missing or frames of the episode were lost
  complete INTEGER NOT NULL, terminated INTEGER NOT NULL, truncated INTEGER NOT NULL, PRIMARY KEY (run, boot, env, episode)) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  id INTEGER PRIMARY KEY, section_id INTEGER NOT NULL REFERENCES sections(id), feature INTEGER NOT NULL, env INTEGER NOT NULL, episode INTEGER NOT NULL,
  first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, frames INTEGER NOT NULL,
  peak REAL NOT NULL, peak_seq INTEGER NOT NULL, mean REAL NOT NULL, ended_by TEXT NOT NULL) STRICT;  -- ended_by: 'inactive', 'episode', 'gap', 'end'
CREATE INDEX events_by_feature ON events (section_id, feature, first_seq);
CREATE TABLE peaks (
  section_id INTEGER NOT NULL REFERENCES sections(id), feature INTEGER NOT NULL, seq INTEGER NOT NULL, env INTEGER NOT NULL, episode INTEGER NOT NULL,
  step INTEGER NOT NULL, value REAL NOT NULL, window_first_seq INTEGER NOT NULL, window_next_seq INTEGER NOT NULL,
  PRIMARY KEY (section_id, feature, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE quality (                     -- one second of frame time
  section_id INTEGER NOT NULL REFERENCES sections(id), first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, frames INTEGER NOT NULL,
  fvu REAL, l0 REAL, PRIMARY KEY (section_id, first_seq)) STRICT, WITHOUT ROWID;
CREATE TABLE drift (                       -- an alarm
  id INTEGER PRIMARY KEY, section_id INTEGER NOT NULL REFERENCES sections(id), kind TEXT NOT NULL, measure TEXT NOT NULL,
  first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, value REAL, low REAL, high REAL) STRICT;     -- kind: 'gate', 'adwin'; measure: 'fvu', 'l0'
CREATE TABLE activity (                    -- how often and how strongly each feature was active since the section began
  section_id INTEGER PRIMARY KEY REFERENCES sections(id), next_seq INTEGER NOT NULL, frames INTEGER NOT NULL,
  active BLOB NOT NULL, maximum BLOB NOT NULL, total BLOB NOT NULL) STRICT;                -- (features,) uint32, float32, float64
CREATE TABLE correlation_snapshots (       -- every live feature with every metric
  id INTEGER PRIMARY KEY, section_id INTEGER NOT NULL REFERENCES sections(id), span TEXT NOT NULL, next_seq INTEGER NOT NULL, frames INTEGER NOT NULL,
  metrics TEXT NOT NULL, features BLOB NOT NULL,                                          -- span: 'rolling', 'start'; metrics: JSON names; features: (f,) uint32
  r BLOB NOT NULL, n BLOB NOT NULL, n_eff BLOB NOT NULL, low BLOB NOT NULL, high BLOB NOT NULL, q BLOB NOT NULL, -- (f, m) float32, NaN = undefined
  UNIQUE (section_id, span, next_seq)) STRICT;
CREATE TABLE correlations (                -- the strongest of a snapshot, for SQL: 8 per metric
  snapshot_id INTEGER NOT NULL REFERENCES correlation_snapshots(id), feature INTEGER NOT NULL, metric TEXT NOT NULL,
  r REAL, n INTEGER NOT NULL, n_eff REAL, low REAL, high REAL, q REAL, significant INTEGER, observed REAL NOT NULL,  -- observed: fraction of frames with both
  PRIMARY KEY (snapshot_id, metric, feature)) STRICT, WITHOUT ROWID;

CREATE TABLE pictures (
  run TEXT NOT NULL, boot TEXT NOT NULL, env INTEGER NOT NULL, seq INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
  width INTEGER NOT NULL, height INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, boot, env, seq)) STRICT;
CREATE TABLE ledger (
  run TEXT NOT NULL, boot TEXT NOT NULL, next_seq INTEGER NOT NULL, queue_dropped_seen INTEGER NOT NULL,
  produced INTEGER NOT NULL, queue_dropped INTEGER NOT NULL, recorded INTEGER, record_failed INTEGER,                -- by the agent's accounts
  subscriber_queue_dropped INTEGER NOT NULL, not_subscribed INTEGER NOT NULL, wire_lost INTEGER NOT NULL, received INTEGER NOT NULL,
  analyzed INTEGER NOT NULL, refused TEXT NOT NULL, status TEXT NOT NULL,                 -- JSON maps of counts and of the agent's numbers
  latency_p50_ms REAL, latency_p99_ms REAL, updated_wall_ns INTEGER NOT NULL, PRIMARY KEY (run, boot)) STRICT, WITHOUT ROWID;
CREATE TABLE gaps (
  run TEXT NOT NULL, boot TEXT NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, reason TEXT NOT NULL, lost INTEGER NOT NULL,
  PRIMARY KEY (run, boot, first_seq, reason)) STRICT, WITHOUT ROWID;
