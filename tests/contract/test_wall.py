"""The wall: whatever decoding or judging raises, only the value that causes it is lost (`not-blocked`)."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract import decode as gate
from pipelines.contract.decode import judge
from pipelines.contract.encode import encode
from pipelines.contract.parsed import Parsed, parse_by_halves, plain_sentence
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, RECORD
from pipelines.errors import TransientError
from pipelines.settings import ContractSettings

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class _Panic(BaseException):
    """As PyO3's PanicException: not an Exception."""


_RAISED = [
    _Panic("slice index starts at 10 but ends at 9"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    OverflowError("date value out of range"),
    pa.ArrowInvalid("offset overflow"),
    ValueError("a\x1b[31mb\nc\u202ed"),
]


def _events(*event_ids: str) -> pa.Array:
    rows = [
        {"event_id": event_id, "user_id": "u", "action_type": "A", "event_time": _NOON, "metadata": []}
        for event_id in event_ids
    ]
    return encode(pa.Table.from_pylist(rows, EVENT))


def _parser(error: BaseException, poison: bytes = b"poison") -> tuple[list[int], object]:
    calls: list[int] = []

    def parse(values: pa.Array) -> Parsed:
        calls.append(len(values))
        if poison in values.to_pylist():
            raise error
        return parse_protobuf(values)

    return calls, parse


@pytest.mark.parametrize("error", _RAISED, ids=lambda error: type(error).__name__)
def test_what_one_value_raises_is_its_own_problem(error: BaseException) -> None:
    """Any exception: the value gets it as its sentence in one clean line, its neighbours are decoded."""
    _, parse = _parser(error)
    values = pa.array([*_events("a", "b", "c").to_pylist(), b"poison", *_events("d").to_pylist()], pa.binary())
    parsed = parse_by_halves(values, parse, "an event")  # type: ignore[arg-type]
    assert list(parsed.errors) == [3]
    problem = parsed.errors[3]
    assert problem.reason is Reason.UNDECODABLE
    assert problem.sentence.isprintable()
    assert problem.sentence.startswith("The value is not an event: ")
    assert [parsed.events["event_id"][row].as_py() for row in (0, 1, 2, 4)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), TransientError("the registry")])
def test_what_is_no_values_fault_goes_through(error: BaseException) -> None:
    """A process that is asked to stop stops, and a service that is down makes no dead letters."""
    calls, parse = _parser(error)
    with pytest.raises(type(error)):
        parse_by_halves(pa.array([b"poison", b""], pa.binary()), parse, "an event")  # type: ignore[arg-type]
    assert calls == [2]


def test_nothing_to_decode() -> None:
    """No values are no rows, whatever decoding raises."""
    _, parse = _parser(_Panic(), b"")
    assert len(parse_by_halves(pa.array([], pa.binary()), parse, "an event").events) == 0  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=40))
def test_every_good_value_survives(mixture: list[bool]) -> None:
    """In any mixture each good value has its row, and each bad one its error."""
    _, parse = _parser(_Panic("no"))
    good = _events("e")[0].as_py()
    values = pa.array([good if each else b"poison" for each in mixture], pa.binary())
    parsed = parse_by_halves(values, parse, "an event")  # type: ignore[arg-type]
    assert sorted(parsed.errors) == [row for row, each in enumerate(mixture) if not each]
    found = parsed.events["event_id"].to_pylist()
    assert [found[row] == "e" for row in range(len(mixture))] == mixture


@pytest.mark.parametrize("error", _RAISED, ids=lambda error: type(error).__name__)
def test_what_judging_raises_is_one_dead_letter(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step after decoding that cannot take an event rejects that one record, with its bytes and the error."""
    values = _events("a", "b", "poison", "c")
    last_value_wins = gate.metadata.last_value_wins

    def poisoned(events: pa.Table) -> pa.Table:
        if "poison" in events["event_id"].to_pylist():
            raise error
        return last_value_wins(events)

    monkeypatch.setattr(gate.metadata, "last_value_wins", poisoned)
    decoded = judge(_records(values), parse_protobuf(values), ContractSettings(), _NOON)
    assert decoded.events["event_id"].to_pylist() == ["a", "b", "c"]
    (letter,) = decoded.rejected.to_pylist()
    assert (letter["offset"], letter["reason"], letter["value"]) == (2, Reason.UNDECODABLE, values[2].as_py())
    assert letter["detail"].isprintable()
    assert decoded.mis_keyed.to_pylist() == [False, False, False]


def test_a_sentence_is_one_clean_line() -> None:
    """Control characters, line ends and marks of direction are shown, not sent; the length is bounded."""
    assert plain_sentence("a\x1b[31m\n b\u202e\x9bc") == "a\\x1b[31m b\\u202e\\x9bc"
    assert len(plain_sentence("x" * 1_000_000)) < 600
    assert len(plain_sentence("\x00" * 1_000_000)) < 600


def _records(values: pa.Array) -> pa.Table:
    places = {"topic_id": "id", "topic": "events", "topic_partition": 0, "bus_time": _NOON, "headers": None}
    rows = [places | {"offset": n, "key": b"u", "value": value} for n, value in enumerate(values.to_pylist())]
    return pa.Table.from_pylist(rows, RECORD).combine_chunks()
