-- From which UTC day on each rule of [time] counts for each user: that of the first event.
SELECT user_id, name, version, first_day
FROM time_start
$only
ORDER BY user_id, name, version
