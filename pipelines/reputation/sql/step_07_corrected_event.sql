-- Events with their metadata, overridden by that of their latest correction. A correction applies to the same user's
-- events, and not if it was retracted.
CREATE OR REPLACE TEMP VIEW corrected_event AS
SELECT event.* REPLACE (
    CASE WHEN correction.user_id IS NULL THEN event.metadata ELSE map_concat(event.metadata, correction.metadata) END
    AS metadata
)
FROM known_event AS event
LEFT JOIN (
    SELECT
        correction.user_id,
        correction.metadata,
        correction.metadata[getvariable('correction_target')] AS target_id,
        row_number() OVER (
            PARTITION BY correction.user_id, correction.metadata[getvariable('correction_target')]
            ORDER BY correction.t DESC, correction.source_row DESC, correction.event_id DESC
        ) AS newest_no
    FROM known_event AS correction
    LEFT JOIN retracted_event AS retracted
        ON retracted.user_id = correction.user_id AND retracted.event_id = correction.event_id
    WHERE correction.role = 'correction' AND retracted.user_id IS NULL
) AS correction
    ON correction.user_id = event.user_id
    AND correction.target_id = event.event_id
    AND correction.newest_no = 1
    AND event.role IS NULL
