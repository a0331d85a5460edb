-- How far each topic partition was read: next_offset by (topic_id, topic_partition).
CREATE OR REPLACE TABLE checkpoints AS
SELECT * FROM arrow_rows
