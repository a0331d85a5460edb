-- Why events counted or did not, by UTC day and action_type (the table trends_reasons).
-- Chart: bar x=day y=sum(events) color=reason
FROM trends_reasons
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY ALL
