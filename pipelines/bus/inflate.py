"""Decompression of record batches in bounded memory, whatever the producer sent.

Brokers limit a batch by its compressed size, and a megabyte of zstd may expand to gigabytes. So every codec is read in
chunks; where a format declares the size of a block, that size is checked before the block is decompressed.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import snappy
import zstandard
from kafka.record.default_records import DefaultRecordBatch
from lz4.frame import LZ4FrameDecompressor

MAX_DECOMPRESSED_BYTES = 128 * 1024 * 1024
"""Of one batch. Producers limit their batches to megabytes before compression."""
CODECS = {
    DefaultRecordBatch.CODEC_NONE: "none",
    DefaultRecordBatch.CODEC_GZIP: "gzip",
    DefaultRecordBatch.CODEC_SNAPPY: "snappy",
    DefaultRecordBatch.CODEC_LZ4: "lz4",
    DefaultRecordBatch.CODEC_ZSTD: "zstd",
}
_CHUNK_BYTES = 1024 * 1024
_GZIP_WBITS = 31
"""zlib's `wbits` for gzip with the largest window."""
_MAX_FRAMES = 100
"""Gzip members or lz4 frames in a batch. Clients write one; each costs a copy of the bytes after it."""
_TOO_MANY_FRAMES = f"it has over {_MAX_FRAMES} frames"
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16
_SIZE_BYTES = 4


class _TooLargeError(Exception):
    """A block declares more than MAX_DECOMPRESSED_BYTES."""


def inflate(codec: int, data: memoryview) -> bytearray | None:
    """Return the decompressed bytes, or None if they exceed MAX_DECOMPRESSED_BYTES.

    Raises ValueError for data that is invalid in this codec or truncated, and for an unknown codec.
    """
    inflated = bytearray()
    try:
        for chunk in _chunks(codec, data):
            inflated += chunk
            if len(inflated) > MAX_DECOMPRESSED_BYTES:
                return None
    except _TooLargeError:
        return None
    except (zlib.error, zstandard.ZstdError, snappy.UncompressError, RuntimeError, EOFError, MemoryError) as error:
        raise ValueError(f"it is not valid {CODECS[codec]}: {str(error) or type(error).__name__}") from error
    return inflated


def _chunks(codec: int, data: memoryview) -> Iterator[bytes | memoryview]:
    match codec:
        case DefaultRecordBatch.CODEC_NONE:
            return iter((data,))
        case DefaultRecordBatch.CODEC_GZIP:
            return _gunzip(data)
        case DefaultRecordBatch.CODEC_SNAPPY:
            return _unsnappy(data)
        case DefaultRecordBatch.CODEC_LZ4:
            return _unlz4(data)
        case DefaultRecordBatch.CODEC_ZSTD:
            return _unzstd(data)
        case _:
            raise ValueError(f"codec {codec} is unknown")


def _gunzip(data: memoryview) -> Iterator[bytes]:
    """Yield the contents of the members of a gzip file, in order."""
    rest: bytes | memoryview = data
    for _ in range(_MAX_FRAMES):
        if not rest:
            return
        member = zlib.decompressobj(_GZIP_WBITS)
        while not member.eof:
            if not rest:
                raise EOFError("it is truncated")
            yield member.decompress(rest, _CHUNK_BYTES)
            rest = member.unconsumed_tail or member.unused_data
    if rest:
        raise EOFError(_TOO_MANY_FRAMES)


def _unlz4(data: memoryview) -> Iterator[bytes]:
    rest: Any = data
    for _ in range(_MAX_FRAMES):
        if not rest:
            return
        frame = LZ4FrameDecompressor()
        while not frame.eof:
            if not rest and frame.needs_input:
                raise EOFError("it is truncated")
            yield frame.decompress(rest, _CHUNK_BYTES)
            rest = b""
        rest = frame.unused_data
    if rest:
        raise EOFError(_TOO_MANY_FRAMES)


def _unzstd(data: memoryview) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while chunk := reader.read(_CHUNK_BYTES):
            yield chunk


def _unsnappy(data: memoryview) -> Iterator[bytes]:
    """Yield the blocks of Xerial framing, which Kafka clients use, or the single block of unframed Snappy.

    Several framed streams may follow each other, as brokers and Java's clients read them.
    """
    if bytes(data[: len(_XERIAL)]) != _XERIAL:
        yield _snappy_block(data)
        return
    at = 0
    while at < len(data):
        if bytes(data[at : at + len(_XERIAL)]) == _XERIAL:
            at += _XERIAL_HEADER_BYTES
            continue
        size = int.from_bytes(data[at : at + _SIZE_BYTES], "big", signed=True)
        at += _SIZE_BYTES
        if not 0 < size <= len(data) - at:
            raise EOFError(f"a block of {size} bytes is missing")
        yield _snappy_block(data[at : at + size])
        at += size


def _snappy_block(block: memoryview) -> Any:
    """Decompress a block; check its declared size first, since Snappy allocates that much up front."""
    declared = 0
    for number, byte in enumerate(block[:5]):
        declared |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            break
    if declared > MAX_DECOMPRESSED_BYTES:
        raise _TooLargeError
    return snappy.uncompress(bytes(block))
