-- Dead letters of batches that are committed, and what became of each. A crash before the commit may have written some
-- early: those belong to a batch that never was, and the batch that read their records again wrote them again.
CREATE OR REPLACE VIEW dead_letters AS
SELECT
    written.*,
    coalesce(latest.fate, 'open') AS fate,
    latest.note,
    latest.decided
FROM ($source) AS written
SEMI JOIN commits ON commits.batch_id = written.batch_id
LEFT JOIN (
    SELECT
        batch_id,
        topic_id,
        topic_partition,
        "offset",
        arg_max(fate, decided) AS fate,
        arg_max(note, decided) AS note,
        max(decided) AS decided
    FROM fates
    GROUP BY ALL
) AS latest USING (batch_id, topic_id, topic_partition, "offset")
