DELETE FROM touched
WHERE user_hash IN (FROM put_off)
