-- The events that their own user retracted; a second retraction of the same event changes nothing.
CREATE OR REPLACE TEMP VIEW retracted_event AS
SELECT DISTINCT user_id, metadata[getvariable('retraction_target')] AS event_id
FROM known_event
WHERE role = 'retraction'
