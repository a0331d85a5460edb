CREATE OR REPLACE TEMP TABLE departed AS
FROM stored
ANTI JOIN recomputed USING (whole)
