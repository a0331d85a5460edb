-- Whole-number division that rounds down, also below zero (// rounds towards zero).
CREATE OR REPLACE TEMP MACRO floor_divide(numerator, denominator) AS
    numerator // denominator - CASE WHEN numerator % denominator < 0 THEN 1 ELSE 0 END;
