-- Each user's document, and a digest of what it says apart from when it was computed. md5 because the digest outlives
-- this process: it decides which documents are published again. The members that take long are made once for both.
WITH said AS (
    SELECT
        *,
        '{"user_id":' || to_json(user_id) || ',"status":' || to_json(status) AS who,
        ',"policy":' || to_json(struct_pack(name := info.policy_name, version := info.policy_version)) AS by_policy,
        substr(CAST(to_json(struct_pack(
            $members
        )) AS VARCHAR), 2) AS said_members
    FROM reputation
    $among
    CROSS JOIN snapshot_info AS info
)
SELECT
    user_id,
    who || ',"as_of":' || to_json(getvariable('document_as_of')) || by_policy || ',"lake_version":' || lake_version
        || ',' || said_members AS document,
    md5_number_lower(who || by_policy || ',' || said_members) AS digest$scores
FROM said
ORDER BY user_id
