-- The reputations within scopes (scopes.py): those of the value of a metadata key.

-- name: scope_value
-- A column of step_15: the value of a scope that an event with a rule has; null for none.
CASE
    WHEN emission_no IS NULL THEN NULL
    WHEN length(metadata[getvariable('scope_${scope}_key')]) BETWEEN 1 AND $longest
        THEN metadata[getvariable('scope_${scope}_key')]
    ELSE CAST(getvariable('scope_${scope}_default') AS VARCHAR)
END AS scope_$scope

-- name: scope_rank
-- A column of step_16: the rank of a rating from the latest of the same value.
row_number() OVER (PARTITION BY user_id, scope_$scope ORDER BY rating IS NULL, t DESC, source_row DESC, event_id DESC)
AS rank_in_${scope}

-- name: scope_summed
-- One row per user and value with an event that counts: like step_17, over the contributions of the value.
SELECT
    tally.user_id,
    tally.value,
    CASE WHEN suspended.user_id IS NULL THEN 'active' ELSE 'suspended' END AS status,
    $columns
FROM (
    SELECT
        user_id,
        value,
        $tallies
    FROM (
        SELECT
            user_id,
            scope_$scope AS value,
            t,
            earned,
            half_life_us,
            rating,$weight
            $rank AS rating_rank,
            counted$recencies
        FROM fact
        WHERE scope_$scope IS NOT NULL
    )
    GROUP BY user_id, value
    HAVING count(*) FILTER (WHERE counted) > 0
) AS tally
LEFT JOIN (SELECT user_id FROM status_period WHERE to_t IS NULL) AS suspended ON suspended.user_id = tally.user_id

-- name: scope_shown
-- What is shown of a user within each value: like step_18.
SELECT
    user_id,
    value,
    status,
    $shown
FROM $summed

-- name: scope_days
-- What each user earned on each UTC day by value, for trends.
SELECT
    user_id,
    day,
    scope_$scope AS value,
    count(*) FILTER (WHERE counted) AS counted,
    $points AS points,
    $ratings AS rating_sum,
    count(rating) AS rating_count
FROM fact
WHERE scope_$scope IS NOT NULL
GROUP BY user_id, day, scope_$scope
HAVING count(*) FILTER (WHERE counted) > 0
ORDER BY user_id, day, value

-- name: scope_ranked
-- The score of each user within a value that a leaderboard ranks; `ranked_values` has the values of all leaderboards.
LEFT JOIN (
    SELECT user_id, ${view}_score AS ranked_$no
    FROM $source
    $only
    WHERE value = getvariable('ranked_values')[$no + 1]
) AS ranked_user_$no USING (user_id)

-- name: scope_document
-- The member of a scope in each document: the values with the most events that count, and how many others there are.
LEFT JOIN (
    SELECT
        user_id,
        CAST(
            '{' || string_agg(to_json(value) || ':' || to_json(struct_pack($members)), ',' ORDER BY place)
            FILTER (WHERE place <= $limit) || '}' AS JSON
        ) AS by_$scope,
        count(*) FILTER (WHERE place > $limit) AS by_${scope}_omitted
    FROM (
        SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY all_time_events DESC, value) AS place
        FROM $source
        $only
    )
    GROUP BY user_id
) AS scope_$scope USING (user_id)

-- name: scope_day_view
-- The days of all scopes, for trends.
CREATE OR REPLACE TEMP VIEW scope_day AS
$days

-- name: scope_day_rows
-- Those of one scope.
SELECT '$scope' AS scope, day, value, counted, points, rating_sum, rating_count
FROM user_days_by_$scope

-- name: scope_day_none
-- No rows, for a policy without scopes.
SELECT
    CAST(NULL AS VARCHAR) AS scope,
    CAST(NULL AS DATE) AS day,
    CAST(NULL AS VARCHAR) AS value,
    CAST(NULL AS BIGINT) AS counted,
    CAST(NULL AS BIGINT) AS points,
    CAST(NULL AS BIGINT) AS rating_sum,
    CAST(NULL AS BIGINT) AS rating_count
WHERE false

-- name: scope_values_explained
-- The values that the explained user's events have, the most frequent first; null for those without one.
SELECT scope_$scope
FROM contribution
WHERE user_id = getvariable('explained_user')
GROUP BY scope_$scope
ORDER BY scope_$scope = getvariable('explained_value') DESC, count(*) DESC, scope_$scope
LIMIT $most

-- name: scope_day_tables
-- The tables of the days of scopes.
SELECT DISTINCT table_name
FROM information_schema.tables
WHERE table_catalog = current_database() AND table_schema = 'main' AND starts_with(table_name, 'user_days_by_')
ORDER BY table_name
