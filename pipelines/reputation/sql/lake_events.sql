CREATE OR REPLACE VIEW events AS
SELECT stored.*, CAST(make_timestamp(epoch_us(stored.event_time)) AS DATE) AS event_day
FROM ($source) AS stored
