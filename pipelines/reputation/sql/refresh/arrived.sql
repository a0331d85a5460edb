CREATE OR REPLACE TEMP TABLE arrived AS
FROM recomputed
ANTI JOIN stored USING (whole)
