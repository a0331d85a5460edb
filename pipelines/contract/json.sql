-- Extract the fields of events from JSON values, and the problem of each invalid one; absent fields are null.
-- Each function parses its text again, and DuckDB keeps the parsed documents: so one call extracts all fields.
WITH decoded AS (
    SELECT row, try(decode(value)) AS text FROM input_rows
),
documents AS (
    SELECT row, text, CASE WHEN json_valid(text) AND json_type(text) = 'OBJECT' THEN text END AS document
    FROM decoded
),
extracted AS (
    SELECT
        row,
        text IS NOT NULL AS is_text,
        document IS NOT NULL AS is_object,
        json_extract_string(document, ['$.event_id', '$.user_id', '$.action_type', '$.timestamp']) AS strings,
        json_type(document, ['$.event_id', '$.user_id', '$.action_type', '$.timestamp']) AS types,
        nullif(json_extract(document, '$.metadata'), 'null') AS entries,
        json_keys(document) AS keys
    FROM documents
),
fields AS (
    SELECT
        *,
        try(CAST(entries AS MAP (VARCHAR, VARCHAR))) AS metadata,
        coalesce(json_type(entries), 'NULL') AS metadata_type,
        json_type(entries, '$.*') AS entry_types,
        list_filter(
            ['event_id', 'user_id', 'action_type', 'timestamp'],
            lambda name, number: coalesce(types[number], 'NULL') NOT IN ('VARCHAR', 'NULL')
        ) AS not_strings
    FROM extracted
)
SELECT
    strings[1] AS event_id,
    strings[2] AS user_id,
    strings[3] AS action_type,
    strings[4] AS timestamp,
    metadata,
    CASE
        WHEN NOT is_text THEN 'it is not UTF-8'
        WHEN NOT is_object THEN 'it is not a JSON object'
        WHEN len(keys) > len(list_distinct(keys)) THEN 'it has a field twice'
        WHEN len(not_strings) > 0 THEN not_strings[1] || ' is not a string'
        WHEN
            metadata_type NOT IN ('OBJECT', 'NULL')
            OR len(list_filter(entry_types, lambda type_name: type_name <> 'VARCHAR')) > 0
            THEN 'metadata is not an object of strings'
        WHEN metadata IS NULL AND metadata_type = 'OBJECT' THEN 'metadata has a key twice'
    END AS problem
FROM fields
ORDER BY row
