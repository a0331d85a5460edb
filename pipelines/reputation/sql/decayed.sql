-- Points after decay, in units of 10^-15 points: granted x 2^(-age / half-life).
CAST(round(
    CAST(granted AS DOUBLE) * 1e9
    * pow(2.0, CAST(t - getvariable('as_of') AS DOUBLE) / coalesce(CAST(half_life_us AS DOUBLE), 'Infinity'))
) AS HUGEINT)
