CREATE VIEW commits AS
SELECT stored.*
FROM ($source) AS stored
WHERE stored.version <= $version
