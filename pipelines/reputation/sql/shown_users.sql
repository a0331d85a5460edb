-- All users who are shown.
SELECT user_id FROM reputation
