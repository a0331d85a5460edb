INSERT INTO $name
SELECT unnest(whole)
FROM arrived
