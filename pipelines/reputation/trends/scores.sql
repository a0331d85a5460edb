-- How the scores of each day's active users were spread (the table trends_scores); all users: distribution.
-- Chart: line x=day y=median low=p10 high=p90
FROM trends_scores
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY ALL
