DELETE FROM $name
WHERE day IN (FROM pending_day)
