-- The events that their own user retracted, each with the retraction that withdrew it: the first one in the order of
-- events. A later retraction of the same event changes nothing.
CREATE OR REPLACE TEMP VIEW retracted_event AS
SELECT user_id, target_id AS event_id, retraction_id AS retracted_by
FROM (
    SELECT
        user_id,
        target_id,
        retraction_id,
        row_number() OVER (PARTITION BY user_id, target_id ORDER BY t, source_row, retraction_id) AS retraction_no
    FROM (
        SELECT
            user_id,
            event_id AS retraction_id,
            t,
            source_row,
            metadata[getvariable('retraction_target')] AS target_id
        FROM known_event
        WHERE role = 'retraction'
    )
)
WHERE target_id IS NOT NULL AND retraction_no = 1
