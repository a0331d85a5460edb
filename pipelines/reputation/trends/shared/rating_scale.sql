-- The scale of each action_type whose events carry a rating, by the policy in force: the metadata key, or the constant
-- (fixed), or the ratings by text (words); minimum and maximum of the scale, which are those of all constant ratings for
-- one that is constant, such as an up vote.
CREATE OR REPLACE TEMP VIEW rating_scale AS
SELECT
    action.key AS action_type,
    action.value ->> '$.rating.from' AS key,
    CAST(action.value ->> '$.rating.fixed' AS DOUBLE) AS fixed,
    CAST(action.value -> '$.rating.map' AS MAP(VARCHAR, DOUBLE)) AS words,
    coalesce(
        CAST(action.value ->> '$.rating.minimum' AS DOUBLE),
        list_min(map_values(words)),
        min(CAST(action.value ->> '$.rating.fixed' AS DOUBLE)) OVER ()
    ) AS minimum,
    coalesce(
        CAST(action.value ->> '$.rating.maximum' AS DOUBLE),
        list_max(map_values(words)),
        max(CAST(action.value ->> '$.rating.fixed' AS DOUBLE)) OVER ()
    ) AS maximum
FROM snapshot_info, json_each(policy, '$.versions') AS edition, json_each(edition.value, '$.actions') AS action
WHERE edition.value ->> '$.version' = policy_version
