-- What was put off is due now.
INSERT INTO touched
FROM put_off
WHERE user_hash NOT IN (FROM touched)
