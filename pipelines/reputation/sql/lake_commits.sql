CREATE OR REPLACE VIEW commits AS
SELECT stored.*
FROM ($source) AS stored
WHERE stored.version <= $version
