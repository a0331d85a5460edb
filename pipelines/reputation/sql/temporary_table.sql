-- Rows of ours (a policy, as a rule) as a temporary table.
CREATE OR REPLACE TEMP TABLE $name AS
SELECT * FROM arrow_rows
