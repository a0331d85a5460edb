-- The UTC day of microseconds since 1970, whatever the session's time zone.
CREATE OR REPLACE TEMP MACRO utc_day(t) AS CAST(make_timestamp(t) AS DATE);
