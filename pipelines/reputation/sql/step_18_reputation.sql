-- What is shown of a user: status, and every view side by side, its score from the sums. views.py fills in the columns.
SELECT
    user_id,
    status,
    $shown
FROM $summed
