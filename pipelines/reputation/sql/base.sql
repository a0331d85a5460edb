-- A warehouse as a file of changes over an immutable base (base.py).

-- name: base_attach
-- The base of a warehouse, read-only, under the name that the views use.
ATTACH $path AS base (READ_ONLY)

-- name: base_schema
-- What changed since the base: a schema of its own, because readers see the views.
CREATE SCHEMA changed

-- name: base_name
-- The name of the base's file.
CREATE OR REPLACE TABLE changed.base AS
SELECT CAST(? AS VARCHAR) AS name

-- name: base_named
-- The same, of the warehouse in a catalog.
SELECT name FROM $catalog.changed.base

-- name: base_users
-- The users whose rows in the base are superseded.
CREATE OR REPLACE TABLE changed.users (user_id VARCHAR)

-- name: base_changed_rows
-- All rows of these users in a table of the base; or the differences to a table of sums.
CREATE OR REPLACE TABLE changed.$name AS
FROM base.main.$name
LIMIT 0

-- name: base_view
-- A table as readers see it.
CREATE VIEW $name AS
FROM base.main.$name
ANTI JOIN changed.users USING (user_id)
UNION ALL
FROM changed.$name

-- name: base_tables
-- The tables of a catalog, without views: of the base all, of a file with a base those that are replaced whole.
SELECT table_name
FROM duckdb_tables()
WHERE database_name = '$catalog' AND schema_name = 'main' AND NOT temporary
ORDER BY table_name

-- name: base_copy
-- A table that is replaced whole, and so is not divided.
CREATE OR REPLACE TABLE $name AS
FROM base.main.$name

-- name: base_counts
-- How many users, events and events that count the warehouse has.
CREATE TABLE changed.counts AS
SELECT CAST(? AS BIGINT) AS users, CAST(? AS BIGINT) AS events, CAST(? AS BIGINT) AS counted

-- name: base_read_counts
-- The same, of a draft that continues a published warehouse.
FROM changed.counts

-- name: base_update_counts
-- The same, after refreshes.
UPDATE changed.counts
SET users = ?, events = ?, counted = ?

-- name: base_changed_hashes
-- The users whose rows in the base are superseded, as hashes.
SELECT DISTINCT hash(user_id) AS user_hash
FROM changed.users

-- name: base_pending_users
-- Users who changed since their rows were written.
CREATE OR REPLACE TEMP TABLE pending_user AS
SELECT DISTINCT user_id
FROM arrow_rows

-- name: base_pending_hashes
-- These users as hashes.
SELECT DISTINCT hash(user_id) AS user_hash
FROM pending_user

-- name: base_delete_rows
-- Replace the rows of these users in a table: delete the old ones ...
DELETE FROM changed.$name
WHERE user_id IN (FROM pending_user)

-- name: base_insert_rows
-- ... and insert the new ones.
INSERT INTO changed.$name
SELECT $columns
FROM arrow_rows
SEMI JOIN pending_user USING (user_id)

-- name: base_insert_users
-- Their rows in the base are superseded.
INSERT INTO changed.users
FROM pending_user
ANTI JOIN changed.users USING (user_id)

-- name: base_changed_share
-- How many users changed since the base, and how many there are.
SELECT (SELECT count(*) FROM changed.users), users
FROM changed.counts

-- name: base_write
-- A table of a new base.
CREATE TABLE next.main.$name AS
FROM $name
ORDER BY $order

-- name: base_is_divided
-- A row if the warehouse in a catalog has a base; an exported one has all rows itself.
SELECT 1
FROM duckdb_tables()
WHERE database_name = '$catalog' AND schema_name = 'changed'
LIMIT 1

-- name: export_views
-- The views of a warehouse that are not tables of a base.
SELECT view_name, sql
FROM duckdb_views()
WHERE
    database_name = 'warehouse'
    AND schema_name = 'main'
    AND view_name NOT IN (SELECT table_name FROM duckdb_tables() WHERE schema_name = 'changed')

-- name: user_rows_columns
-- Names and types of the columns of a table or view.
DESCRIBE $relation

-- name: user_rows_stored
-- The rows of a table with the hash of their users and in its order, for user_rows.py.
SELECT $columns
FROM $relation
ORDER BY user_hash

-- name: user_rows_read
-- The rows of a table from their stored form.
SELECT $columns
FROM $rows

-- name: user_rows_loaded
-- The rows of some users in a table, from their stored form.
CREATE OR REPLACE TEMP TABLE loaded_$name AS
SELECT $columns
FROM arrow_rows
