-- JSON objects to the fields of an event, or to what is wrong with each; a field that is absent or null is null.
-- Each function parses its text once more, and DuckDB keeps what it parsed: so one asks for all fields together.
WITH read AS (
    SELECT row, try(decode(value)) AS text FROM given
),
documents AS (
    SELECT row, text, CASE WHEN json_valid(text) AND json_type(text) = 'OBJECT' THEN text END AS document
    FROM read
),
asked AS (
    SELECT
        row,
        text IS NOT NULL AS is_text,
        document IS NOT NULL AS is_object,
        json_extract_string(document, ['$.event_id', '$.user_id', '$.action_type', '$.timestamp']) AS texts,
        json_type(document, ['$.event_id', '$.user_id', '$.action_type', '$.timestamp']) AS kinds,
        nullif(json_extract(document, '$.metadata'), 'null') AS entries,
        json_keys(document) AS keys
    FROM documents
),
fields AS (
    SELECT
        *,
        try(CAST(entries AS MAP (VARCHAR, VARCHAR))) AS metadata,
        coalesce(json_type(entries), 'NULL') AS metadata_kind,
        json_type(entries, '$.*') AS entry_kinds,
        list_filter(
            ['event_id', 'user_id', 'action_type', 'timestamp'],
            lambda name, number: coalesce(kinds[number], 'NULL') NOT IN ('VARCHAR', 'NULL')
        ) AS not_texts
    FROM asked
)
SELECT
    texts[1] AS event_id,
    texts[2] AS user_id,
    texts[3] AS action_type,
    texts[4] AS timestamp,
    metadata,
    CASE
        WHEN NOT is_text THEN 'it is not UTF-8'
        WHEN NOT is_object THEN 'it is no JSON object'
        WHEN len(keys) > len(list_distinct(keys)) THEN 'it has a field twice'
        WHEN len(not_texts) > 0 THEN not_texts[1] || ' is no string'
        WHEN metadata_kind NOT IN ('OBJECT', 'NULL') OR len(list_filter(entry_kinds, lambda kind: kind <> 'VARCHAR')) > 0
            THEN 'metadata is no object of strings'
        WHEN metadata IS NULL AND metadata_kind = 'OBJECT' THEN 'metadata has a key twice'
    END AS problem
FROM fields
ORDER BY row
