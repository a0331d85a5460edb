-- The whole number nearest to a fraction; halves go up.
CREATE OR REPLACE TEMP MACRO round_half_up(numerator, denominator) AS
    floor_divide(2 * numerator + denominator, 2 * denominator);
