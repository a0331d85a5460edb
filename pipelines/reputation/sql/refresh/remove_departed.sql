DELETE FROM $name
WHERE rowid IN (SELECT place FROM departed)
