-- Events, active users, points and ratings by UTC day in each scope of the policy, such as each city.
-- $scope = null: only this scope
-- $top = 10 (1..1000000): the values of a scope with the most events that count in these days
-- Method: only events that count, each in the value that it has now, after corrections; equal values are in the order of
-- their texts. The label is the value with its scope, of which two may have equal values. Without scopes in the policy
-- there are no rows.
-- Chart: line x=day y=events color=label
WITH days AS (
    SELECT *
    FROM scope_day
    WHERE
        ($scope IS NULL OR scope = $scope)
        AND ($since IS NULL OR day >= $since)
        AND ($until IS NULL OR day < $until)
),

largest AS (
    SELECT scope, value
    FROM days
    GROUP BY scope, value
    QUALIFY row_number() OVER (PARTITION BY scope ORDER BY sum(counted) DESC, value) <= $top
)

SELECT
    day,
    scope,
    value,
    CAST(sum(counted) AS BIGINT) AS events,
    count(*) AS active_users,
    sum(points) AS points,
    CASE WHEN sum(rating_count) > 0 THEN CAST(sum(rating_sum) AS DOUBLE) / CAST(sum(rating_count) AS DOUBLE) END
        AS rating_average,
    CAST(sum(rating_count) AS BIGINT) AS rating_count,
    value || ' (' || scope || ')' AS label
FROM days
SEMI JOIN largest USING (scope, value)
GROUP BY day, scope, value
ORDER BY day, scope, value
