-- The next whole number above a fraction.
CREATE OR REPLACE TEMP MACRO round_ceiling(numerator, denominator) AS -floor_divide(-numerator, denominator);
