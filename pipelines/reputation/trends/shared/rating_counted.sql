-- Every rating that counts as of the warehouse's moment, of someone else: retracted, suspended and superseded ones are
-- not here, and corrected ones have their new value. opinion is its position on the scale of the policy in force, from
-- -1 (the minimum) to 1 (the maximum); on a scale of one value, such as up votes alone, it is the sign.
CREATE OR REPLACE TEMP VIEW rating_counted AS
SELECT
    user_id,
    rater_id,
    day,
    CASE
        WHEN maximum > minimum
            THEN greatest(-1, least(1, (2 * rating - minimum - maximum) / (maximum - minimum)))
        ELSE sign(rating)
    END AS opinion
FROM (
    SELECT
        earned.user_id,
        earned.metadata['rater_id'] AS rater_id,
        utc_day(earned.t) AS day,
        earned.rating,
        minimum,
        maximum
    FROM earned
    INNER JOIN opinion_scale AS scale ON scale.action_type = earned.action_type
    WHERE earned.counts
)
WHERE rating IS NOT NULL AND rater_id <> user_id
