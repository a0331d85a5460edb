-- What was decided about dead letters. A requeue counts once it is committed: a crash before that leaves them open.
CREATE OR REPLACE VIEW fates AS
SELECT decided.*
FROM ($source) AS decided
WHERE
    requeue_id IS NULL
    OR requeue_id IN (SELECT unnest(list_transform(ranges, lambda r : r.topic_id)) FROM commits)
