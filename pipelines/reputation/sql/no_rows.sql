-- No rows, of the right types: a list of no files.
SELECT $columns
WHERE false
