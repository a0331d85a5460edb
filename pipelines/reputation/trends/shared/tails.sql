-- Upper tails of distributions: the probability of `least` or more, summed term by term.
CREATE OR REPLACE TEMP MACRO
-- Gamma-Poisson (negative binomial) with a shape and a rate, for one unit of time. Below the mean it returns 1, which
-- no test rejects.
gamma_poisson_tail(least, shape, rate) AS
    CASE WHEN least <= shape / rate THEN 1.0 ELSE
        list_sum(list_transform(
            range(CAST(least AS BIGINT), CAST(2 * least AS BIGINT) + 100),
            lambda x: exp(
                lgamma(x + shape) - lgamma(x + 1) - lgamma(shape)
                + shape * ln(rate / (rate + 1)) - x * ln(rate + 1)
            )
        ))
    END;

CREATE OR REPLACE TEMP MACRO
-- Binomial: of `trials` with a probability strictly between 0 and 1.
binomial_tail(least, trials, chance) AS
    list_sum(list_transform(
        range(CAST(least AS BIGINT), CAST(trials AS BIGINT) + 1),
        lambda x: exp(
            lgamma(trials + 1) - lgamma(x + 1) - lgamma(trials - x + 1)
            + x * ln(chance) + (trials - x) * ln(1 - chance)
        )
    ));

CREATE OR REPLACE TEMP MACRO
-- Standard normal, for z of 1 and more: Laplace's continued fraction, accurate to 1 % at 1, and better above.
normal_tail(z) AS
    exp(-z * z / 2) / sqrt(2 * pi()) / (z + 1 / (z + 2 / (z + 3 / (z + 4 / (z + 5 / z)))));
