-- The lower bound of Wilson's score interval for p positives among n, at z standard deviations. Null for n = 0.
CREATE OR REPLACE TEMP MACRO wilson(p, n, z) AS
    (
        (p / nullif(n, 0) + z * z / (2 * n))
        - z * sqrt((p / nullif(n, 0)) * (1 - p / nullif(n, 0)) / n + z * z / (4.0 * n * n))
    )
    / (1 + z * z / n);
