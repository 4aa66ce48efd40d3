-- Version 5 of the explainer's tables: sentences about features of text, judged by detection and fuzzing (explainer/exam.py). An
-- explanation without a predicate has '' there. Scores of kind 'detection' and 'fuzzing' stand beside those of predicates.
CREATE TABLE exams (
  id INTEGER PRIMARY KEY, dictionary_hash TEXT NOT NULL, feature INTEGER NOT NULL, kind TEXT NOT NULL,     -- 'detection' or 'fuzzing'
  label TEXT NOT NULL, description TEXT NOT NULL, source TEXT NOT NULL,                   -- the sentence that is judged, and whose it is
  judge TEXT NOT NULL,                     -- the model that judges
  control TEXT,                            -- the other feature's sentence that the same pieces are shown with; NULL where there is none
  evidence_hash TEXT NOT NULL, explanation_id INTEGER,                                    -- NULL while it is a proposal
  began_wall_ns INTEGER NOT NULL, ended_wall_ns INTEGER,                                  -- NULL while it goes on
  outcome TEXT) STRICT;                    -- 'answered', 'deadline', 'too few pieces'
CREATE INDEX exams_by_feature ON exams (dictionary_hash, feature, id);
CREATE TABLE exam_pieces (                 -- what the judge was shown, and what it said of it
  exam_id INTEGER NOT NULL, number INTEGER NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,             -- seq: of the middle token
  text INTEGER NOT NULL,                   -- number of the text among those of the exam's frames: an interval is over texts
  sort TEXT NOT NULL,                      -- 'active'; 'random' or 'near' where the feature is not active
  shown TEXT NOT NULL, said INTEGER, controlled INTEGER,                                  -- 1 yes, 0 no, NULL unanswered; with the control's sentence
  PRIMARY KEY (exam_id, number)) STRICT, WITHOUT ROWID;
ALTER TABLE scores ADD COLUMN judge TEXT;   -- the model that judged, NULL for predicates
ALTER TABLE scores ADD COLUMN chance REAL;  -- what its answers reach in 97.5 % of shuffles
ALTER TABLE scores ADD COLUMN kind TEXT GENERATED ALWAYS AS (CASE WHEN basis IN ('detection', 'fuzzing') THEN basis ELSE 'predicate' END) VIRTUAL
