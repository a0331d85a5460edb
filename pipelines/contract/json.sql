-- JSON objects to the fields of an event, or to what is wrong with each; a field that is absent or null is null.
WITH read AS (
    SELECT row, try(decode(value)) AS text FROM given
),
documents AS (
    SELECT row, text, CASE WHEN json_valid(text) AND json_type(text) = 'OBJECT' THEN json(text) END AS document
    FROM read
),
fields AS (
    SELECT
        row,
        text,
        document,
        document ->> '$.event_id' AS event_id,
        document ->> '$.user_id' AS user_id,
        document ->> '$.action_type' AS action_type,
        document ->> '$.timestamp' AS timestamp,
        try(CAST(nullif(document -> '$.metadata', 'null') AS MAP (VARCHAR, VARCHAR))) AS metadata,
        list_filter(
            ['event_id', 'user_id', 'action_type', 'timestamp'],
            lambda name: coalesce(json_type(document, '$.' || name), 'NULL') NOT IN ('VARCHAR', 'NULL')
        ) AS not_texts,
        coalesce(json_type(document, '$.metadata'), 'NULL') NOT IN ('OBJECT', 'NULL')
        OR len(list_filter(json_type(document, '$.metadata.*'), lambda kind: kind <> 'VARCHAR')) > 0 AS not_map
    FROM documents
)
SELECT
    event_id,
    user_id,
    action_type,
    timestamp,
    metadata,
    CASE
        WHEN text IS NULL THEN 'it is not UTF-8'
        WHEN document IS NULL THEN 'it is no JSON object'
        WHEN len(json_keys(document)) > len(list_distinct(json_keys(document))) THEN 'it has a field twice'
        WHEN len(not_texts) > 0 THEN not_texts[1] || ' is no string'
        WHEN not_map THEN 'metadata is no object of strings'
        WHEN metadata IS NULL AND json_type(document, '$.metadata') = 'OBJECT' THEN 'metadata has a key twice'
    END AS problem
FROM fields
ORDER BY row
