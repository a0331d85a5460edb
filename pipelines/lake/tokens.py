"""Tokens of text and of undecodable bytes that may be a user_id.

An erasure knows users by their digests only, so it hashes candidates and looks the hashes up. A candidate is a word, a
whole text, a quoted string, or as many bytes as the preceding byte states (Protobuf, Avro). `jane-doe` is not found in
`jane-doe-2`, nor in anything compressed, encrypted, escaped or encoded twice.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The bytes from 0xf5 on, 0xc0 and 0xc1 do not occur in UTF-8, so in no user_id.
_INVALID = rb"\x00-\x1f\x7f\xc0\xc1\xf5-\xff"
_RUN = re.compile(rb'[^"\'' + _INVALID + rb"]+")
_WORD = re.compile(rb'[^"\' `,;:=|/\\(){}\[\]<>&?!' + _INVALID + rb"]+")


def tokenize_text(text: bytes) -> set[bytes]:
    """Return the words of a text, and the whole text."""
    return {text, *_words(text)}


def tokenize_bytes(data: bytes) -> set[bytes]:
    """Return what may be a string within bytes of any format."""
    found = _words(data)
    for run in _RUN.finditer(data):
        start = run.start()
        found |= {run[0], run[0].strip(b" ")}
        for at in (start - 1, start):  # the length prefix of a string may itself be a byte of text
            length = data[at] if at >= 0 else 0
            ends = [at + 1 + length, at + 1 + length // 2]
            found |= {data[at + 1 : end] for end in ends if end <= len(data)}
    return found - {b""}


def contain_any(letters: pa.Table, texts: Iterable[str]) -> pa.BooleanArray:
    """Return which dead letters (REJECTED columns) contain any of `texts` in key, value, headers or detail.

    Each token is a part of one of these, so the others have none of them as a token.
    """
    found = np.zeros(len(letters), bool)
    headers = letters["headers"].combine_chunks()
    rows = pc.list_parent_indices(headers).to_numpy()
    of_rows = [letters[name].combine_chunks().cast(pa.binary()) for name in ("key", "value", "detail")]
    of_headers = [headers.flatten().field(name).cast(pa.binary()) for name in ("key", "value")]
    for text in texts:
        for column in of_rows:
            found |= _contains(column, text)
        for column in of_headers:
            found[rows[_contains(column, text)]] = True
    return pa.array(found)


def _contains(column: pa.BinaryArray, text: str) -> np.ndarray:
    return pc.fill_null(pc.match_substring(column, text), fill_value=False).to_numpy(zero_copy_only=False)


def _words(text: bytes) -> set[bytes]:
    return {form for word in _WORD.findall(text) for form in (word, word.strip(b".#*_~"))} - {b""}
