"""Replacing the names of persons at metadata keys of one event, decoded or in the bytes of its value. Pure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from pipelines.contract import event_pb2

_JSON_TEXT = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")(?:(\s*+:\s*+)("[^"\\]*+(?:\\.[^"\\]*+)*+"))?')
"""A text of a valid JSON value, with the text that it names, if it is a key of one."""
PseudonymOf = Callable[[str], str | None]
"""Returns the pseudonym of the person whom a user_id names; None if that person was not erased."""


def pseudonyms_in(metadata: Mapping[str, str], keys: Sequence[str], pseudonym_of: PseudonymOf) -> dict[str, str]:
    """Return the pseudonyms by the personal keys of one event's metadata at which erased persons are named."""
    return {key: found for key in keys if key in metadata and (found := pseudonym_of(metadata[key]))}


def replace_in_value(value: bytes, form: str, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Replace names at personal keys in one decodable value; `form` is protobuf or json, others stay as they are."""
    match form:
        case "protobuf":
            return _replace_in_message(value, keys, pseudonym_of)
        case "json":
            return _replace_in_json(value, keys, pseudonym_of)
        case _:
            return value


def _replace_in_message(value: bytes, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Unknown fields remain."""
    message = event_pb2.Event.FromString(value)  # type: ignore[attr-defined]
    named = pseudonyms_in(message.metadata, keys, pseudonym_of)
    for key, replacement in named.items():
        message.metadata[key] = replacement
    return message.SerializeToString(deterministic=True) if named else value


def _replace_in_json(value: bytes, keys: Sequence[str], pseudonym_of: PseudonymOf) -> bytes:
    """Every other byte remains. Only texts are read: a number may have more digits than Python converts."""

    def renamed(found: re.Match[bytes]) -> bytes:
        key, colon, name = found.groups()
        replacement = pseudonym_of(json.loads(name)) if name and json.loads(key) in keys else None
        return found[0] if replacement is None else key + colon + b'"' + replacement.encode() + b'"'

    return _JSON_TEXT.sub(renamed, value)
