-- Statements about a warehouse as a whole.

-- name: create_table
-- A table of the warehouse from its query.
CREATE OR REPLACE TABLE $name AS
$query

-- name: create_view
-- A view of the warehouse from its query.
CREATE OR REPLACE VIEW $name AS
$query

-- name: attach_warehouse
-- A published warehouse, read-only.
ATTACH $path AS warehouse (READ_ONLY)

-- name: views_of_objects
-- A row if a view of the warehouse reads an object store.
SELECT 1 FROM duckdb_views() WHERE contains(sql, '''s3://') LIMIT 1

-- name: count_users_and_events
-- Users, their events, and the events that count.
SELECT
    (SELECT count(*) FROM reputation),
    CAST(coalesce(sum(events), 0) AS BIGINT),
    CAST(coalesce(sum(counted), 0) AS BIGINT)
FROM user_days

-- name: table_snapshot_info
-- One row: lake version, moment and policy of the warehouse, and by what and when it was derived. policy is the whole
-- policy as JSON; recipe identifies the lake and the statements (a refresh requires the same); last_batch is the batch
-- of lake_version; format is the number of the warehouse's format; decayed_to is null where no points decay; erasures is
-- how many erasures and withdrawals the lake had applied; merges identifies the merged users that it had.
CREATE OR REPLACE TABLE snapshot_info (
    lake_version BIGINT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    policy_name VARCHAR NOT NULL,
    policy_version VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    derived_at TIMESTAMP WITH TIME ZONE NOT NULL,
    karmalake_version VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    last_batch VARCHAR,
    format INTEGER NOT NULL,
    decayed_to TIMESTAMP WITH TIME ZONE,
    erasures BIGINT NOT NULL,
    merges VARCHAR NOT NULL
)

-- name: insert_snapshot_info
-- The row of snapshot_info.
INSERT INTO snapshot_info
VALUES (?, make_timestamptz(?), ?, ?, ?, make_timestamptz(?), ?, ?, ?, ?, ?, ?, ?)

-- name: insert_rows
-- Append the rows of a query to a table.
INSERT INTO $name
$query
