DELETE FROM by_user.file
WHERE path NOT IN (SELECT unnest(getvariable('files')))
