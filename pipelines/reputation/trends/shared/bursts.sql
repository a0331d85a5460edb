-- Periods in which a subject had far more than expected from its own history. counts: a table with subject, slot (a
-- whole number that counts days or hours) and observed, a row for each slot with at least one observation. Method: the
-- count of a slot is Gamma-Poisson distributed. The shape is what was observed before plus a prior's, the rate the
-- slots before plus a prior's; the prior has the mean and variance of all subjects' rates (where they do not vary: is
-- exponential), so that a newcomer's rate is uncertain. p_value is the upper tail, for slots with `least` and more; the
-- family is every slot since each subject's first.
CREATE OR REPLACE TEMP MACRO bursts(counts, least, fdr) AS TABLE
    WITH lives AS (
        SELECT subject, max(max(slot)) OVER () - min(slot) + 1 AS slots, sum(observed) / slots AS per_slot
        FROM query_table(counts)
        GROUP BY subject
    ),

    prior AS (
        SELECT
            sum(slots) AS family,
            coalesce(nullif(var_samp(per_slot), 0), avg(per_slot) ** 2) AS variance,
            avg(per_slot) ** 2 / nullif(variance, 0) AS shape,
            avg(per_slot) / nullif(variance, 0) AS rate
        FROM lives
    ),

    histories AS (
        SELECT
            *,
            coalesce(sum(observed) OVER earlier, 0) AS observed_before,
            slot - min(slot) OVER (PARTITION BY subject) AS slots_before
        FROM query_table(counts)
        WINDOW earlier AS (PARTITION BY subject ORDER BY slot ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ),

    tested AS (
        SELECT
            subject,
            slot,
            observed,
            slots_before,
            family,
            shape + observed_before AS own_shape,
            rate + slots_before AS own_rate,
            own_shape / own_rate AS expected,
            gamma_poisson_tail(observed, own_shape, own_rate) AS p_value
        FROM histories, prior
        WHERE observed >= least AND shape > 0
    )

    FROM discoveries('tested', fdr);
