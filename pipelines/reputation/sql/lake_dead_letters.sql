-- Dead letters that are committed. A crash before the commit may have written some early, and again afterwards:
-- a place on the bus counts once, and only below the checkpoint.
CREATE VIEW dead_letters AS
SELECT written.*
FROM ($source) AS written
JOIN checkpoints
    ON checkpoints.topic_id = written.topic_id
    AND checkpoints.topic_partition = written.topic_partition
    AND written."offset" < checkpoints.next_offset
QUALIFY row_number() OVER (
    PARTITION BY written.topic_id, written.topic_partition, written."offset"
    ORDER BY written.batch_id
) = 1
