-- Conflicts that are committed (as with dead letters), with the place of the event that came first and stands.
CREATE VIEW conflicts AS
SELECT
    written.*,
    first.topic_id AS first_topic_id,
    first.topic AS first_topic,
    first.topic_partition AS first_topic_partition,
    first."offset" AS first_offset,
    first.event_time AS first_event_time
FROM ($source) AS written
JOIN checkpoints
    ON checkpoints.topic_id = written.topic_id
    AND checkpoints.topic_partition = written.topic_partition
    AND written."offset" < checkpoints.next_offset
LEFT JOIN events AS first ON first.event_id = written.event_id
QUALIFY row_number() OVER (
    PARTITION BY written.topic_id, written.topic_partition, written."offset"
    ORDER BY written.batch_id
) = 1
