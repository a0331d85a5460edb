-- The prior of each day with ratings or retractions, in millionths, and the sums of the day.
SELECT day, ratings, weight, total, prior
FROM rating_prior
ORDER BY day
