-- Version 3: the half minute before an alarm, as a recording; relative to the database's folder. NULL: none was saved. Not in the digest.
ALTER TABLE drift ADD COLUMN clip TEXT;
