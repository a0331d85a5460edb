-- Whether ratings rise because raters became kinder: all ratings against those of a fixed panel of raters.
-- $period = "month" | "week": length of a row's period
-- $panel_share = 0.5 (0..1): least share of all periods in which a rater of the panel gave ratings
-- $action_type = null: only ratings of this action_type
-- Method: ratings as given, retracted or not. The shift is the mean, over the panel's raters of that period, of their
-- average in the period minus their all-time average. Unlike the plain average it does not move when raters come and
-- go.
-- Chart: line x=first_day y=panel_shift
WITH given AS (
    SELECT CAST(date_trunc($period, day) AS DATE) AS first_day, rater_id, rating
    FROM rating_given
    WHERE $action_type IS NULL OR action_type = $action_type
),

panel AS (
    SELECT rater_id, avg(rating) AS own_average
    FROM given
    WHERE rater_id IS NOT NULL
    GROUP BY rater_id
    HAVING count(DISTINCT first_day) >= $panel_share * (SELECT count(DISTINCT first_day) FROM given)
),

by_rater AS (
    SELECT first_day, given.rater_id, avg(rating) AS average, avg(rating) - any_value(own_average) AS shift
    FROM given
    INNER JOIN panel ON panel.rater_id = given.rater_id
    GROUP BY first_day, given.rater_id
),

by_panel AS (
    SELECT first_day, count(*) AS panel_raters, avg(average) AS panel_average, avg(shift) AS panel_shift
    FROM by_rater
    GROUP BY first_day
),

all_raters AS (
    SELECT first_day, count(*) AS ratings, count(DISTINCT rater_id) AS raters, avg(rating) AS average
    FROM given
    GROUP BY first_day
)

SELECT
    all_raters.*,
    coalesce(panel_raters, 0) AS panel_raters,
    panel_average,
    panel_shift
FROM all_raters
LEFT JOIN by_panel ON by_panel.first_day = all_raters.first_day
WHERE ($since IS NULL OR all_raters.first_day >= $since) AND ($until IS NULL OR all_raters.first_day < $until)
ORDER BY all_raters.first_day
