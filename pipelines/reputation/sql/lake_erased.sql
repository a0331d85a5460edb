-- Where rows stood that an erasure removed. One that was killed may have noted rows that are still there: those do not
-- count, nor does a row that was noted twice.
CREATE OR REPLACE VIEW erased AS
SELECT DISTINCT noted.*
FROM ($source) AS noted
SEMI JOIN commits ON commits.batch_id = noted.batch_id
ANTI JOIN (
    SELECT 'events' AS table_name, topic_id, topic_partition, "offset", batch_id FROM events
    UNION ALL
    SELECT 'dead_letters', topic_id, topic_partition, "offset", batch_id FROM dead_letters
    UNION ALL
    SELECT 'conflicts', topic_id, topic_partition, "offset", batch_id FROM conflicts
) AS present USING (table_name, topic_id, topic_partition, "offset", batch_id)
