-- Functions that the steps call.

-- name: macro_parse_micro
-- A number of the metadata in millionths; null when the text is not a plain decimal number of at most six digits after
-- the point. Zeros at the end are not counted: a column of decimals has all of its scale. The factor is a BIGINT,
-- because the product with an INTEGER has 18 digits: from a million upwards it would overflow, and end the derivation.
CREATE OR REPLACE TEMP MACRO parse_micro(number) AS
    CASE
        WHEN regexp_full_match(number, '[+-]?[0-9]{1,12}(\.[0-9]{1,6}0*)?')
            THEN CAST(TRY_CAST(number AS DECIMAL(18, 6)) * CAST(1000000 AS BIGINT) AS BIGINT)
    END

-- name: macro_utc_day
-- The UTC day of microseconds since 1970, in any session time zone.
CREATE OR REPLACE TEMP MACRO utc_day(t) AS CAST(make_timestamp(t) AS DATE)

-- name: macro_bucket
-- The first day of the UTC day, week (from Monday), month or year that contains a time; null for no period: one bucket
-- for all time.
CREATE OR REPLACE TEMP MACRO bucket(t, period) AS
    CASE period
        WHEN 'day' THEN utc_day(t)
        WHEN 'week' THEN CAST(date_trunc('week', utc_day(t)) AS DATE)
        WHEN 'month' THEN CAST(date_trunc('month', utc_day(t)) AS DATE)
        WHEN 'year' THEN CAST(date_trunc('year', utc_day(t)) AS DATE)
    END

-- name: macro_time_periods
-- How many periods of months, or of days, have begun or passed between two days: at least as many as have passed.
CREATE OR REPLACE TEMP MACRO time_periods(first_day, day, months, days) AS
    CASE
        WHEN months > 0
            THEN ((year(day) - year(first_day)) * 12 + month(day) - month(first_day)) // months
        ELSE date_diff('day', first_day, day) // days
    END

-- name: macro_time_date
-- The day that is so many periods after another one. A month ends on its last day where it lacks the day of the first.
CREATE OR REPLACE TEMP MACRO time_date(first_day, months, days, periods) AS
    CAST(first_day + to_months(CAST(periods * months AS INTEGER)) AS DATE) + CAST(periods * days AS INTEGER)

-- name: macro_governed
-- Whether a rule over some actions, of a version in force during [from_us, to_us), applies to an event.
CREATE OR REPLACE TEMP MACRO governed(action_type, t, actions, from_us, to_us) AS
    list_contains(actions, action_type) AND t >= from_us AND t < to_us

-- name: macro_floor_divide
-- Whole-number division that rounds down, also below zero (// rounds towards zero).
CREATE OR REPLACE TEMP MACRO floor_divide(numerator, denominator) AS
    numerator // denominator - CASE WHEN numerator % denominator < 0 THEN 1 ELSE 0 END

-- name: macro_wilson
-- The lower bound of Wilson's score interval for p positives among n, at z standard deviations. Null for n = 0.
CREATE OR REPLACE TEMP MACRO wilson(p, n, z) AS
    (
        (p / nullif(n, 0) + z * z / (2 * n))
        - z * sqrt((p / nullif(n, 0)) * (1 - p / nullif(n, 0)) / n + z * z / (4.0 * n * n))
    )
    / (1 + z * z / n)

-- name: macro_round_half_up
-- The whole number nearest to a fraction; halves go up.
CREATE OR REPLACE TEMP MACRO round_half_up(numerator, denominator) AS
    floor_divide(2 * numerator + denominator, 2 * denominator)

-- name: macro_round_half_even
-- The whole number nearest to a fraction; halves go to the even neighbour.
CREATE OR REPLACE TEMP MACRO round_half_even(numerator, denominator) AS
    floor_divide(2 * numerator + denominator, 2 * denominator)
    - CASE
        WHEN (2 * numerator + denominator) % (2 * denominator) = 0
            AND floor_divide(2 * numerator + denominator, 2 * denominator) % 2 <> 0
            THEN 1
        ELSE 0
    END

-- name: macro_round_floor
-- The next whole number below a fraction.
CREATE OR REPLACE TEMP MACRO round_floor(numerator, denominator) AS floor_divide(numerator, denominator)

-- name: macro_round_ceiling
-- The next whole number above a fraction.
CREATE OR REPLACE TEMP MACRO round_ceiling(numerator, denominator) AS -floor_divide(-numerator, denominator)
