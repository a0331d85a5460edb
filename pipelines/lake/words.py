"""Where a user_id may stand in text and in bytes that nobody could decode: as a word of its own.

An erasure knows users by digests alone, so what is looked for is whole: a word, a text as a whole, a string in quotes,
or as many bytes as the byte before says (Protobuf, Avro). `jane-doe` is not found in `jane-doe-2`, and not in what is
compressed, encrypted, escaped or encoded once more.
"""

import re

# The bytes from 0xf5 on, 0xc0 and 0xc1 are in no UTF-8, so in no user_id.
_NEVER = rb"\x00-\x1f\x7f\xc0\xc1\xf5-\xff"
_RUN = re.compile(rb'[^"\'' + _NEVER + rb"]+")
_WORD = re.compile(rb'[^"\' `,;:=|/\\(){}\[\]<>&?!' + _NEVER + rb"]+")


def words_of_text(text: bytes) -> set[bytes]:
    """Return the words of a text, and the text as a whole."""
    return {text, *_words(text)}


def words_of_bytes(data: bytes) -> set[bytes]:
    """Return what may be a string within bytes of any format."""
    found = _words(data)
    for run in _RUN.finditer(data):
        start = run.start()
        found |= {run[0], run[0].strip(b" ")}
        for at in (start - 1, start):  # the byte that says how long the string is may be one of text
            length = data[at] if at >= 0 else 0
            ends = [at + 1 + length, at + 1 + length // 2]
            found |= {data[at + 1 : end] for end in ends if end <= len(data)}
    return found - {b""}


def _words(text: bytes) -> set[bytes]:
    return {form for word in _WORD.findall(text) for form in (word, word.strip(b".#*_~"))} - {b""}
