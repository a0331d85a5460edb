-- The next whole number below a fraction.
CREATE OR REPLACE TEMP MACRO round_floor(numerator, denominator) AS floor_divide(numerator, denominator);
