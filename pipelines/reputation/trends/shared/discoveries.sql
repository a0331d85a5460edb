-- The rows of `tests` (a table with p_value) that Benjamini and Hochberg's procedure keeps: the expected share of
-- false discoveries is at most `fdr`. family: number of tests made, including those without a row.
CREATE OR REPLACE TEMP MACRO discoveries(tests, fdr) AS TABLE
    SELECT *, -log10(greatest(p_value, 1e-300)) AS score
    FROM (
        SELECT *, min(p_value * family / as_small) OVER (ORDER BY p_value DESC) AS q_value
        FROM (SELECT *, count(*) OVER (ORDER BY p_value) AS as_small FROM query_table(tests))
    )
    WHERE q_value <= fdr;
