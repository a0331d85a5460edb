"""Decompressing a record batch into no more memory than was agreed on, whatever a producer has put into it.

Brokers limit a batch by its compressed size, and a megabyte of zstd may hold gigabytes. So every codec is read piece by
piece, or, where its format says beforehand what a piece becomes, that is looked at first.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import snappy
import zstandard
from kafka.record.default_records import DefaultRecordBatch
from lz4.frame import LZ4FrameDecompressor

MOST_BYTES = 128 * 1024 * 1024
"""Producers' own limits on a batch are megabytes, before compression."""
CODECS = {
    DefaultRecordBatch.CODEC_NONE: "none",
    DefaultRecordBatch.CODEC_GZIP: "gzip",
    DefaultRecordBatch.CODEC_SNAPPY: "snappy",
    DefaultRecordBatch.CODEC_LZ4: "lz4",
    DefaultRecordBatch.CODEC_ZSTD: "zstd",
}
_STEP_BYTES = 1024 * 1024
_GZIP = 31
"""zlib's word for the format, with the largest window."""
_MOST_FRAMES = 100
"""Of gzip members or lz4 frames in a batch, of which clients write one: each costs a copy of what stands behind it."""
_MANY_FRAMES = f"it has over {_MOST_FRAMES} frames"
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16
_SIZE_BYTES = 4


class _TooLargeError(Exception):
    """A piece says of itself that it is more than MOST_BYTES."""


def inflate(codec: int, data: memoryview) -> bytearray | None:
    """Return what was compressed, or None if it is more than MOST_BYTES.

    Raises ValueError for bytes that are not of the codec, or end too early, and for a codec that there is not.
    """
    inflated = bytearray()
    try:
        for piece in _pieces(codec, data):
            inflated += piece
            if len(inflated) > MOST_BYTES:
                return None
    except _TooLargeError:
        return None
    except (zlib.error, zstandard.ZstdError, snappy.UncompressError, RuntimeError, EOFError, MemoryError) as error:
        raise ValueError(f"it is not {CODECS[codec]}: {str(error) or type(error).__name__}") from error
    return inflated


def _pieces(codec: int, data: memoryview) -> Iterator[bytes | memoryview]:
    match codec:
        case DefaultRecordBatch.CODEC_NONE:
            return iter((data,))
        case DefaultRecordBatch.CODEC_GZIP:
            return _of_gzip(data)
        case DefaultRecordBatch.CODEC_SNAPPY:
            return _of_snappy(data)
        case DefaultRecordBatch.CODEC_LZ4:
            return _of_lz4(data)
        case DefaultRecordBatch.CODEC_ZSTD:
            return _of_zstd(data)
        case _:
            raise ValueError(f"there is no codec {codec}")


def _of_gzip(data: memoryview) -> Iterator[bytes]:
    """Yield what the members of a gzip file hold, one behind the other."""
    rest: bytes | memoryview = data
    for _ in range(_MOST_FRAMES):
        if not rest:
            return
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            if not rest:
                raise EOFError("it ends too early")
            yield member.decompress(rest, _STEP_BYTES)
            rest = member.unconsumed_tail or member.unused_data
    if rest:
        raise EOFError(_MANY_FRAMES)


def _of_lz4(data: memoryview) -> Iterator[bytes]:
    rest: Any = data
    for _ in range(_MOST_FRAMES):
        if not rest:
            return
        frame = LZ4FrameDecompressor()
        while not frame.eof:
            if not rest and frame.needs_input:
                raise EOFError("it ends too early")
            yield frame.decompress(rest, _STEP_BYTES)
            rest = b""
        rest = frame.unused_data
    if rest:
        raise EOFError(_MANY_FRAMES)


def _of_zstd(data: memoryview) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(_STEP_BYTES):
            yield piece


def _of_snappy(data: memoryview) -> Iterator[bytes]:
    """Yield the blocks of the framing that Kafka's clients use, or the one block without it."""
    if bytes(data[: len(_XERIAL)]) != _XERIAL:
        yield _snappy_block(data)
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(data):
        size = int.from_bytes(data[at : at + _SIZE_BYTES], "big", signed=True)
        at += _SIZE_BYTES
        if not 0 < size <= len(data) - at:
            raise EOFError(f"a block of {size} bytes is not there")
        yield _snappy_block(data[at : at + size])
        at += size


def _snappy_block(block: memoryview) -> Any:
    """Return a block; memory for what it says of its own size is set aside before it is read."""
    declared = 0
    for number, byte in enumerate(block[:5]):
        declared |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            break
    if declared > MOST_BYTES:
        raise _TooLargeError
    return snappy.uncompress(bytes(block))
