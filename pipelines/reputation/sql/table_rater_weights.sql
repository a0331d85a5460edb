-- The weights of raters on each day with ratings, in millionths: those in force on that day, from the ratings before it.
-- Users without a row have the minimum of the policy. The newest day has all users above it; so have other days where
-- the policy has corrections, else they have their raters.
SELECT day, rater_id AS user_id, weight
FROM rater_weight
ORDER BY day, user_id
