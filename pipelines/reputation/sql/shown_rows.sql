-- What is shown of each user: the row of `reputation`, as JSON.
SELECT user_id, CAST(to_json(shown) AS VARCHAR) AS shown
FROM $source AS shown
$only
