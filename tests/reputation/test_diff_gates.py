"""Gates on a comparison of two policies: what each measure counts, and what is no gate."""

import polars as pl
import pytest

from pipelines.errors import UsageError
from pipelines.reputation.diff_gates import check_gate, parse_gate

_COMPARED = pl.DataFrame(
    {
        "user_id": ["up", "down", "same", "from zero"],
        "score_before": [100, 100, 50, 0],
        "score_after": [110, 85, 50, 1],
        "change": [10, -15, 0, 1],
        "rank_before": [1, 1, 3, 4],
        "rank_after": [1, 2, 3, 4],
    }
)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("moved = 3", 3, True),
        ("moved <= 75%", 75, True),
        ("moved<75%", 75, False),
        ("gained > 1", 2, True),
        ("lost >= 1", 1, True),
        ("rank_moved < 25.5 %", 25, True),
        ("moved_over_10_percent < 3", 2, True),  # exactly 10 % is not over it; a change from zero is
        ("moved_over_9_percent <= 3", 3, True),
        ("largest_gain <= 10", 10, True),
        ("largest_loss < 15", 15, False),
    ],
)
def test_a_measure(text: str, value: int, holds: bool) -> None:
    """Users, their share in percent, or points."""
    result = check_gate(parse_gate(text), _COMPARED)
    assert (result.value, result.holds) == (value, holds)


def test_decimal_scores_and_no_users() -> None:
    """A float of a decaying score is compared as it is shown; without users every measure is 0."""
    decimals = _COMPARED.with_columns(pl.col("score_before", "score_after", "change") * 0.1)
    decimals[0, "score_before"], decimals[0, "change"] = 0.7, 0.77 - 0.7
    assert not check_gate(parse_gate("largest_loss < 1.5"), decimals).holds
    assert check_gate(parse_gate("moved_over_10_percent = 2"), decimals).holds  # 0.7 to 0.77 is not over 10 %
    vast = _COMPARED.with_columns(score_before=pl.lit(2**62), change=pl.lit(2**62 // 11))
    assert check_gate(parse_gate("moved_over_9_percent = 100%"), vast).holds
    assert check_gate(parse_gate("moved_over_10_percent = 0"), vast).holds
    for measure in ("moved", "moved_over_1_percent", "largest_gain"):
        assert check_gate(parse_gate(f"{measure} = 0"), _COMPARED.clear()).holds
    assert check_gate(parse_gate("moved = 0%"), _COMPARED.clear()).holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not MEASURE OPERATOR NUMBER or NUMBER%, such as 'moved_over_10_percent < 1%'"),
        ("moved < -1", "is not MEASURE OPERATOR NUMBER"),
        ("moved ! 1", "the operators are <=, >=, <, >, ="),
        ("moved < 1e3", "is not MEASURE"),
        ("moved == 1", "is not MEASURE"),
        ("moved < \N{ARABIC-INDIC DIGIT THREE}", "is not MEASURE"),
        ("mooved < 1", "names no measure: did you mean 'moved'"),
        ("median < 1", "names no measure: the measures are moved, gained, lost"),
        ("largest_gain < 1%", "compares points, which have no %"),
    ],
)
def test_no_gate(text: str, message: str) -> None:
    """The message says what a gate is."""
    with pytest.raises(UsageError) as raised:
        parse_gate(text)
    assert message in str(raised.value)
