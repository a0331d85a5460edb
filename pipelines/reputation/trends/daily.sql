-- Events, counted events, active users, points and ratings by UTC day and action_type (the table trends_daily).
-- Chart: line x=day y=events color=action_type
FROM trends_daily
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY ALL
