"""Isolation: an exception in decoding or validation affects only the value that causes it (`not-blocked`)."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from dagster import DagsterExecutionInterruptedError
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract import decode as gate
from pipelines.contract.decode import validate
from pipelines.contract.encode import encode
from pipelines.contract.parsing import Parsed, parse_by_bisection, sanitize_message
from pipelines.contract.protobuf import parse_protobuf
from pipelines.contract.rejection import Reason
from pipelines.contract.schema import EVENT, RECORD
from pipelines.errors import TransientError
from pipelines.settings import ContractSettings
from tests.panic import Panic

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


_RAISED = [
    Panic("slice index starts at 10 but ends at 9"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    OverflowError("date value out of range"),
    pa.ArrowInvalid("offset overflow"),
    ValueError("a\x1b[31mb\nc\u202ed"),
]
_PROPAGATED = [
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    DagsterExecutionInterruptedError(),
    TransientError("the registry"),
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
def test_an_exception_is_attributed_to_its_value(error: BaseException) -> None:
    """The value has the exception as its detail, in one line; all other values are decoded."""
    _, parse = _parser(error)
    values = pa.array([*_events("a", "b", "c").to_pylist(), b"poison", *_events("d").to_pylist()], pa.binary())
    parsed = parse_by_bisection(values, parse, "an event")  # type: ignore[arg-type]
    assert list(parsed.errors) == [3]
    problem = parsed.errors[3]
    assert problem.reason is Reason.UNDECODABLE
    assert problem.detail.isprintable()
    assert problem.detail.startswith("The value is not an event: ")
    assert [parsed.events["event_id"][row].as_py() for row in (0, 1, 2, 4)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", _PROPAGATED, ids=lambda error: type(error).__name__)
def test_errors_of_services_and_interrupts_propagate(error: BaseException) -> None:
    """A process stops on request, and an outage of a service causes no dead letters."""
    calls, parse = _parser(error)
    with pytest.raises(type(error)):
        parse_by_bisection(pa.array([b"poison", b""], pa.binary()), parse, "an event")  # type: ignore[arg-type]
    assert calls == [2]


def test_nothing_to_decode() -> None:
    """No values give no rows, even if the decoder raises."""
    _, parse = _parser(Panic(), b"")
    assert len(parse_by_bisection(pa.array([], pa.binary()), parse, "an event").events) == 0  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=40))
def test_every_good_value_survives(mixture: list[bool]) -> None:
    """In any mixture each good value has its row, and each bad one its error."""
    _, parse = _parser(Panic("no"))
    good = _events("e")[0].as_py()
    values = pa.array([good if each else b"poison" for each in mixture], pa.binary())
    parsed = parse_by_bisection(values, parse, "an event")  # type: ignore[arg-type]
    assert sorted(parsed.errors) == [row for row, each in enumerate(mixture) if not each]
    found = parsed.events["event_id"].to_pylist()
    assert [found[row] == "e" for row in range(len(mixture))] == mixture


@pytest.mark.parametrize("error", _RAISED, ids=lambda error: type(error).__name__)
def test_an_exception_in_validation_is_one_dead_letter(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a step after decoding fails on an event, only that record is rejected, with its bytes and the error."""
    values = _events("a", "b", "poison", "c")
    last_value_wins = gate.metadata.last_value_wins

    def poisoned(events: pa.Table) -> pa.Table:
        if "poison" in events["event_id"].to_pylist():
            raise error
        return last_value_wins(events)

    monkeypatch.setattr(gate.metadata, "last_value_wins", poisoned)
    decoded = validate(_records(values), parse_protobuf(values), ContractSettings(), _NOON)
    assert decoded.events["event_id"].to_pylist() == ["a", "b", "c"]
    (letter,) = decoded.rejected.to_pylist()
    assert (letter["offset"], letter["reason"], letter["value"]) == (2, Reason.UNDECODABLE, values[2].as_py())
    assert letter["detail"].isprintable()
    assert decoded.mis_keyed.to_pylist() == [False, False, False]


@pytest.mark.parametrize("error", _PROPAGATED, ids=lambda error: type(error).__name__)
def test_an_interrupt_of_validation_rejects_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid event does not become a dead letter because a run is cancelled meanwhile (`nothing-lost`)."""
    signals = [error]

    def interrupted(events: pa.Table) -> pa.Table:
        if signals:
            raise signals.pop()
        return events

    monkeypatch.setattr(gate.metadata, "last_value_wins", interrupted)
    values = _events("a", "b")
    with pytest.raises(type(error)):
        validate(_records(values), parse_protobuf(values), ContractSettings(), _NOON)


def test_a_detail_is_one_line_without_control_characters() -> None:
    """Control characters, line breaks and direction marks are escaped; the length is bounded."""
    assert sanitize_message("a\x1b[31m\n b\u202e\x9bc") == "a\\x1b[31m b\\u202e\\x9bc"
    assert len(sanitize_message("x" * 1_000_000)) < 600
    assert len(sanitize_message("\x00" * 1_000_000)) < 600


def _records(values: pa.Array) -> pa.Table:
    places = {"topic_id": "id", "topic": "events", "topic_partition": 0, "bus_time": _NOON, "headers": None}
    rows = [places | {"offset": n, "key": b"u", "value": value} for n, value in enumerate(values.to_pylist())]
    return pa.Table.from_pylist(rows, RECORD).combine_chunks()
