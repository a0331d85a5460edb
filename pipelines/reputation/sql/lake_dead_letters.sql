-- Dead letters of batches that are committed. A crash before the commit may have written some early: those belong to a
-- batch that never was, and the batch that read their records again wrote them again.
CREATE OR REPLACE VIEW dead_letters AS
SELECT written.*
FROM ($source) AS written
SEMI JOIN commits ON commits.batch_id = written.batch_id
