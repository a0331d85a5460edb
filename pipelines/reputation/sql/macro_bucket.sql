-- The first day of the UTC day, week (from Monday) or month that a time lies in; null: one bucket for ever.
CREATE OR REPLACE TEMP MACRO bucket(t, period) AS
    CASE period
        WHEN 'day' THEN utc_day(t)
        WHEN 'week' THEN CAST(date_trunc('week', utc_day(t)) AS DATE)
        WHEN 'month' THEN CAST(date_trunc('month', utc_day(t)) AS DATE)
    END;
