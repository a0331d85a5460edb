-- Names the history up to a version: a lake restored from a backup may give the same version to another batch.
SELECT arg_max(batch_id, version)
FROM committed
WHERE version <= ?
