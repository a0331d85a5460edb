-- Each user's document, and a digest of what it says apart from when it was computed. md5 because the digest outlives
-- this process: it decides which documents are published again.
SELECT
    user_id,
    CAST(to_json(struct_pack(
        user_id := user_id,
        status := status,
        as_of := getvariable('document_as_of'),
        policy := struct_pack(name := info.policy_name, version := info.policy_version),
        lake_version := info.lake_version,
        $members
    )) AS VARCHAR) AS document,
    md5_number_lower(CAST(to_json(struct_pack(
        user_id := user_id,
        status := status,
        policy := struct_pack(name := info.policy_name, version := info.policy_version),
        $members
    )) AS VARCHAR)) AS digest$scores
FROM reputation
$among
CROSS JOIN snapshot_info AS info
ORDER BY user_id
