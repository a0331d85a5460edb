-- What had been committed before known_at, whatever was compacted since: compaction keeps a row's batch.
AND event.batch_id IN (
    SELECT batch_id
    FROM commits
    WHERE epoch_us(committed) < getvariable('known_at')
)
