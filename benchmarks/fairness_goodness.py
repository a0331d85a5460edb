"""Leave-one-out prediction of the ratings of Bitcoin OTC by fairness and goodness, the experiment of ICDM 2016.

Each rating is removed, fairness and goodness are computed from all others until no value moves by 1e-6, and their
product predicts it: root mean square error and Pearson's correlation, on the scale from -1 to 1. As in the program of
the authors, a rater without another rating is fair (1), and a user without another one is neither good nor bad (0).
The solution is unique, so each computation starts from that of all ratings. Beside it, in the same run: the mean of the
other ratings that the user received.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.report import save_results

_OTC = Path(__file__).parents[2] / "shared/data/bitcoin-otc/ratings.csv"
_TOLERANCE = 1e-6

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def run(folder: Path) -> None:  # noqa: ARG001 - as every benchmark
    """Predict every rating, and save the errors of each predictor."""
    if not _OTC.exists():
        print(f"{_OTC} is missing: there is nothing to measure")
        return
    ratings = pl.read_csv(_OTC)
    raters, users = (ratings[name].to_numpy().astype(np.int64) for name in ("from", "to"))
    weights = ratings["feature"].to_numpy() / 10
    predictions = {
        "fairness x goodness": _leave_one_out(raters, users, weights),
        "mean of the other ratings": _other_ratings(users, weights),
    }
    rows = [(name, *_errors(weights, predicted)) for name, predicted in predictions.items()]
    save_results("fairness_goodness", ("predictor", "rmse", "pcc"), rows, "rmse", ratings=len(weights))


def _errors(weights: Numbers, predicted: Numbers) -> tuple[float, float]:
    rmse = float(np.sqrt(np.mean((weights - predicted) ** 2)))
    return round(rmse, 4), round(float(np.corrcoef(weights, predicted)[0, 1]), 4)


def _leave_one_out(raters: Integers, users: Integers, weights: Numbers) -> Numbers:
    """Return the prediction of each rating from all others."""
    size = int(max(raters.max(), users.max())) + 1
    everything = np.ones(len(weights))
    start = _converged(raters, users, weights, everything, np.ones(size))[0]
    predicted = np.zeros(len(weights))
    for row in range(len(weights)):
        everything[row] = 0
        fairness, goodness = _converged(raters, users, weights, everything, start)
        everything[row] = 1
        predicted[row] = fairness[raters[row]] * goodness[users[row]]
    return predicted


def _converged(
    raters: Integers, users: Integers, weights: Numbers, counted: Numbers, fairness: Numbers
) -> tuple[Numbers, Numbers]:
    """Return fairness and goodness by number of the user; `counted` is 0 for a rating that is left out, else 1."""
    size = len(fairness)
    given, received = (np.bincount(who, counted, size) for who in (raters, users))
    while True:
        goodness = np.bincount(users, counted * fairness[raters] * weights, size) / np.maximum(received, 1)
        distance = np.bincount(raters, counted * np.abs(weights - goodness[users]), size)
        fairer = 1 - distance / 2 / np.maximum(given, 1)
        if np.abs(fairer - fairness).max() < _TOLERANCE:
            return fairer, goodness
        fairness = fairer


def _other_ratings(users: Integers, weights: Numbers) -> Numbers:
    """Return the mean of the other ratings that each rated user received; 0 where there is none."""
    total, count = np.bincount(users, weights), np.bincount(users)
    return (total[users] - weights) / np.maximum(count[users] - 1, 1)
