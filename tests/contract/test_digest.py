"""Digests: the compiled SipHash matches the published one, and a payload digest covers the whole payload."""

import random
import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.digest import digest, siphash128
from pipelines.contract.schema import EVENT

_KEY = bytes(range(16))
_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_WORD = (1 << 64) - 1
# From the reference implementation's vectors for 128 bits of output: key 00..0f, input 00, 01, ... of each length.
_PUBLISHED = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    15: "5493e99933b0a8117e08ec0f97cfc3d9",
}


@pytest.mark.slow
@pytest.mark.parametrize("length", _PUBLISHED)
def test_published_vectors(length: int) -> None:
    """The compiled loop reproduces the vectors that the authors of SipHash publish."""
    assert _compiled(_KEY, bytes(range(length))).hex() == _PUBLISHED[length]


@pytest.mark.parametrize("length", _PUBLISHED)
def test_the_naive_siphash_has_the_published_vectors(length: int) -> None:
    """The oracle of the next test is correct itself."""
    assert _naive(_KEY, bytes(range(length))).hex() == _PUBLISHED[length]


def test_every_length_agrees_with_a_naive_siphash() -> None:
    """For random keys and bytes of each length from 0 to 200, the compiled loop agrees with the naive one."""
    rng = random.Random(20260301)  # noqa: S311 - reproducible, not secret
    for length in range(201):
        key, data = rng.randbytes(16), rng.randbytes(length)
        assert _compiled(key, data) == _naive(key, data), f"length {length}"


def test_an_id_in_a_sliced_column_has_its_siphash() -> None:
    """The digest of an id is the SipHash of its UTF-8 bytes, in sliced and chunked columns too."""
    ids = ["", "a", "üß", "x" * 100, "b"]
    events = _table([_event(event_id=event_id) for event_id in ids])
    for table in (events, pa.concat_tables([events.slice(0, 2), events.slice(2)])):
        for start in range(len(ids)):
            found = digest(table.slice(start), _KEY)
            halves = zip(found.high.tolist(), found.low.tolist(), strict=True)
            assert [struct.pack("<QQ", *pair) for pair in halves] == [_naive(_KEY, i.encode()) for i in ids[start:]]


@settings(deadline=None)  # the first call may compile the loop
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), min_size=2, max_size=6), st.randoms())
def test_the_order_of_metadata_does_not_matter(metadata: dict[str, str], rng: random.Random) -> None:
    """Two encodings of one map, whose order Protobuf leaves open, are the same payload."""
    entries = list(metadata.items())
    shuffled = rng.sample(entries, len(entries))
    assert _payload(metadata=entries) == _payload(metadata=shuffled)


_ENTRIES = [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": "v"},
        {"user_id": ""},
        {"action_type": "B"},
        {"event_time": _NOON + timedelta(microseconds=1)},
        {"metadata": [("a", "b")]},
        {"metadata": [("a", "b"), ("c", "e")]},
        {"metadata": [("a", "d"), ("c", "b")]},
        {"metadata": [("b", "a"), ("c", "d")]},
        {"metadata": [("ab", ""), ("c", "d")]},
        {"metadata": [("a", "bc"), ("", "d")]},
        {"metadata": [("a", "b"), ("c", "d"), ("", "")]},
        {"metadata": []},
        {"user_id": "uA", "action_type": ""},
    ],
    ids=str,
)
def test_any_field_changes_the_payload(changed: dict[str, object]) -> None:
    """A small difference in any field is a conflict; text moved from one field to the next is a difference."""
    assert _payload(metadata=_ENTRIES) != _payload(**{"metadata": _ENTRIES} | changed)


def test_the_event_id_is_not_part_of_the_payload() -> None:
    """The payload is what is compared between two events with the same id."""
    assert _payload(event_id="1") == _payload(event_id="2")


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """A row has the same digest alone and among others, wherever its metadata is stored."""
    rows = [_event(event_id=str(n), metadata=[(f"k{i}", f"v{n}") for i in range(n % 4)]) for n in range(50)]
    together = digest(_table(rows), _KEY)
    one_by_one = [digest(_table([row]), _KEY) for row in rows]
    for name in ("high", "low", "payload"):
        assert np.array_equal(getattr(together, name), np.concatenate([getattr(d, name) for d in one_by_one]))


def test_a_slice_has_the_digests_of_its_rows() -> None:
    """A slice of a table, which Arrow does not copy, gives the digests of its rows."""
    events = _table([_event(event_id=str(n), metadata=[(f"k{i}", f"v{n}") for i in range(n % 4)]) for n in range(20)])
    at_once = digest(events, _KEY).payload
    for start in range(20):
        assert np.array_equal(digest(events.slice(start, 7), _KEY).payload, at_once[start : start + 7])


def test_another_key_gives_other_digests() -> None:
    """A producer cannot construct two ids with one digest without the key."""
    events = _table([_event()])
    assert digest(events, _KEY).high[0] != digest(events, bytes(16)).high[0]


def test_a_key_of_another_length_is_refused() -> None:
    """A key is 16 bytes."""
    with pytest.raises(ValueError, match="15 bytes"):
        digest(_table([_event()]), bytes(15))


def test_no_rows() -> None:
    """An empty table has empty digests."""
    assert len(digest(EVENT.empty_table(), _KEY)) == 0


def _event(**fields: object) -> dict[str, object]:
    return {"event_id": "e", "user_id": "u", "action_type": "A", "event_time": _NOON, "metadata": []} | fields


def _table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, EVENT)


def _payload(**fields: object) -> int:
    return int(digest(_table([_event(**fields)]), _KEY).payload[0])


def _compiled(key: bytes, data: bytes) -> bytes:
    k0, k1 = np.frombuffer(key, dtype="<u8")
    padded = np.frombuffer(b"\xaa" * 3 + data + b"\xbb" * 9, np.uint8)
    return struct.pack("<QQ", *map(int, siphash128(k0, k1, padded, 3, 3 + len(data))))


def _naive(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 with 128 bits of output, word by word as in the paper and its reference implementation."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    v[1] ^= 0xEE
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        _sip_rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xEE
    _sip_rounds(v, 4)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    _sip_rounds(v, 4)
    return struct.pack("<QQ", first, v[0] ^ v[1] ^ v[2] ^ v[3])


def _sip_rounds(v: list[int], rounds: int) -> None:
    def add(i: int, j: int, bits: int, rotation: int) -> None:
        v[i] = (v[i] + v[j]) & _WORD
        v[j] = _rotated_left(v[j], bits) ^ v[i]
        v[i] = _rotated_left(v[i], rotation)

    for _ in range(rounds):
        add(0, 1, 13, 32)
        add(2, 3, 16, 0)
        add(0, 3, 21, 0)
        add(2, 1, 17, 32)


def _rotated_left(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (64 - bits))) & _WORD
