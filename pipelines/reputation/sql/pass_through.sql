-- A step that this policy has no use for.
CREATE OR REPLACE TEMP VIEW $name AS
SELECT * FROM $source
