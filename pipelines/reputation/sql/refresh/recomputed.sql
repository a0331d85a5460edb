-- The rows that the touched users have now, each as one value, so that whole rows can be compared.
CREATE OR REPLACE TEMP TABLE recomputed AS
SELECT now AS whole
FROM ($query) AS now
