INSERT INTO by_user.file
SELECT path
FROM (SELECT unnest(getvariable('files')) AS path)
WHERE path NOT IN (FROM by_user.file)
