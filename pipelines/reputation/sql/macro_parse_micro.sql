-- A number of the metadata in millionths; null when the text is no plain decimal number.
CREATE OR REPLACE TEMP MACRO parse_micro(number) AS
    CASE
        WHEN regexp_full_match(number, '[+-]?[0-9]{1,12}(\.[0-9]{1,6})?')
            THEN CAST(TRY_CAST(number AS DECIMAL(18, 6)) * 1000000 AS BIGINT)
    END;
