"""Decompressing a record batch into no more memory than was agreed on, whatever a producer has put into it.

Brokers limit a batch by its compressed size, and a megabyte of zstd may hold gigabytes. The other codecs cannot make
more than a known multiple of what there is: as long as that fits, they need no watching.
"""

import gzip
from collections.abc import Iterator
from io import BufferedIOBase, BytesIO
from typing import Any

import zstandard
from kafka.record.default_records import DefaultRecordBatch
from lz4.frame import LZ4FrameFile

MOST_BYTES = 128 * 1024 * 1024
"""Producers' own limits on a batch are megabytes, before compression."""
_STEP_BYTES = 1024 * 1024
_MOST_TIMES = {
    DefaultRecordBatch.CODEC_NONE: 1,
    DefaultRecordBatch.CODEC_GZIP: 1032,
    DefaultRecordBatch.CODEC_SNAPPY: 22,
    DefaultRecordBatch.CODEC_LZ4: 255,
}


def needs_watching(codec: int, size: int) -> bool:
    """Return whether so many bytes of a codec may become more than MOST_BYTES."""
    return codec not in _MOST_TIMES or size * _MOST_TIMES[codec] > MOST_BYTES


def inflate(codec: int, data: bytes) -> bytes | None:
    """Return what was compressed, or None if it is more than MOST_BYTES; raises what the codec does for broken bytes.

    Snappy and what is not compressed have no way to be read piece by piece: too much of them is not read at all.
    """
    if codec in {DefaultRecordBatch.CODEC_NONE, DefaultRecordBatch.CODEC_SNAPPY}:
        return None
    pieces: list[bytes] = []
    left = MOST_BYTES
    for piece in _pieces(codec, data):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            return None
    return b"".join(pieces)


def _pieces(codec: int, data: bytes) -> Iterator[bytes]:
    with _reader(codec, data) as reader:
        while piece := reader.read(_STEP_BYTES):
            yield piece


def _reader(codec: int, data: bytes) -> BufferedIOBase | Any:
    if codec == DefaultRecordBatch.CODEC_GZIP:
        return gzip.GzipFile(fileobj=BytesIO(data))
    if codec == DefaultRecordBatch.CODEC_LZ4:
        return LZ4FrameFile(BytesIO(data))
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
