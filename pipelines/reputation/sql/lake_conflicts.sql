-- Conflicts of batches that are committed (as with dead letters: judged again, a record may be none), with the place of
-- the event that came first and stands.
CREATE OR REPLACE VIEW conflicts AS
SELECT
    written.*,
    first.topic_id AS first_topic_id,
    first.topic AS first_topic,
    first.topic_partition AS first_topic_partition,
    first."offset" AS first_offset,
    first.event_time AS first_event_time
FROM ($source) AS written
SEMI JOIN commits ON commits.batch_id = written.batch_id
LEFT JOIN events AS first ON first.event_id = written.event_id
