-- Each user's document, and a digest of it without moments and lake_version, which decides what is published again. md5,
-- because the digest outlives this process and DuckDB's own hash may change. Costly members are computed once for both.
-- The digest covers the scores of leaderboards within scopes, too: a document does not hold all values. `shown_json` is
-- computed only if it is selected.
WITH parts AS (
    SELECT
        *,
        '{"user_id":' || to_json(user_id) || ',"status":' || to_json(status) AS head,
        ',"policy":' || to_json(struct_pack(
            name := getvariable('document_policy'), version := getvariable('document_policy_version')
        )) AS by_policy,
        substr(CAST(to_json(struct_pack(
            $members
        )) AS VARCHAR), 2) AS members_json,
        CAST(to_json(shown) AS VARCHAR) AS shown_json
    FROM $source AS shown
    $only$scopes
)
SELECT
    user_id,
    head || getvariable('document_moments') || by_policy || ',"lake_version":' || getvariable('document_lake_version')
        || ',' || members_json AS document,
    md5_number_lower(head || by_policy || ',' || members_json$ranked) AS digest$scores
FROM parts
