"""The digests of published documents: pieces give what a dictionary would."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving.digests import DIGESTS, Digests
from tests.serving.conftest import names

USERS = st.sampled_from(["", "ann", "bob", "cem", "dan", "\0", "\U0001f600", "é", *(f"user-{i}" for i in range(40))])
STEPS = st.lists(st.tuples(st.dictionaries(USERS, st.integers(0, 2**64 - 1)), st.sets(USERS)), max_size=12)


def frame(digests: dict[str, int]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(digests), "digest": list(digests.values())}, DIGESTS)


@given(first=st.dictionaries(USERS, st.integers(0, 2**64 - 1)), steps=STEPS, asked=st.lists(USERS))
def test_pieces_give_what_a_dictionary_gives(
    first: dict[str, int], steps: list[tuple[dict[str, int], set[str]]], asked: list[str]
) -> None:
    """After any updates and removals, the digests of any users, of all, and their number are those of a dictionary."""
    digests, model = Digests(frame(first)), dict(first)
    for written, others in steps:
        removed = others & model.keys() - written.keys()
        digests.update(frame(written), names(*removed))
        model = {user: digest for user, digest in (model | written).items() if user not in removed}
        assert len(digests) == len(model)
        found = dict(digests.of(names(*asked)).iter_rows())
        assert found == {user: model[user] for user in asked if user in model}
    every = digests.all()
    assert every.schema == DIGESTS
    assert every["user_id"].is_sorted()
    assert dict(every.iter_rows()) == model


def test_an_update_does_not_copy_all_digests() -> None:
    """The piece of all users stays the same object under many small updates: their cost does not depend on it."""
    digests = Digests(frame({f"user-{i}": i for i in range(10_000)}))
    every = digests.all()
    for number in range(100):
        digests.update(frame({f"user-{number}": 0, f"new-{number}": 0}), names(f"user-{number + 5_000}"))
        assert digests._pieces[0] is every
    assert len(digests) == 10_000


def test_empty_updates_leave_no_pieces() -> None:
    """A quiet system publishes without a change, for days: look-ups must not cost more with each such publication."""
    digests = Digests(frame({"ann": 1}))
    for _ in range(3):
        digests.update(frame({}), names())
    assert len(digests._pieces) == 1
    assert digests.all().rows() == [("ann", 1)]
