-- The whole number nearest to a fraction; halves go to the even neighbour.
CREATE OR REPLACE TEMP MACRO round_half_even(numerator, denominator) AS
    floor_divide(2 * numerator + denominator, 2 * denominator)
    - CASE
        WHEN (2 * numerator + denominator) % (2 * denominator) = 0
            AND floor_divide(2 * numerator + denominator, 2 * denominator) % 2 <> 0
            THEN 1
        ELSE 0
    END;
