-- Which version each batch made, read once: there may be as many files of commits as there were commits.
CREATE OR REPLACE TEMP TABLE committed AS
SELECT batch_id, version
FROM ($source) AS commits
WHERE version <= $version
