-- What the ratings of each user add to the sums behind the priors, by UTC day: for a refresh, which compares.
SELECT user_id, day, ratings, weight, total
FROM rating_given
$only
ORDER BY user_id, day
