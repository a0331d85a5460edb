"""The text of a file as a stream of UTF-8, whatever its compression and encoding; both are found in its first bytes."""

import bz2
import codecs
import gzip
import io
import lzma
import struct
import tempfile
import zipfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import zstandard

from pipelines.errors import UsageError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz", ".zip")
FALLBACK_ENCODING = "cp1252"
"""Western European, which spreadsheets write: the guess for text that is not UTF-8."""
_MARKS = {
    **dict.fromkeys((BOM_UTF32_LE, BOM_UTF32_BE), "utf-32"),  # first: one of them begins as one of UTF-16 does
    **dict.fromkeys((BOM_UTF16_LE, BOM_UTF16_BE), "utf-16"),
}
_LAST_PLANE, _MIN_ASCII_SHARE = 0x10, 0.1
"""Of Unicode; and of the characters of a text in UTF-16 without a mark."""
_ZIP = b"PK\x03\x04"
_MAX_WINDOW_BYTES = 2**31
"""Of zstd --long=31, the largest that a file can declare; its memory is used only as far as the file has content."""
_FRAME_BLOCK_BYTES = 1024
"""Of a zstd, bzip2 or xz file, decompressed at a time: of zstd at most 32 MiB, since four bytes may be 128 KiB."""
_SAMPLE_BYTES = 256 * 1024
_ERRORS = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError),
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error),
)
"""The second line: what zipfile raises for compressions, passwords, and the members that a damaged archive names."""


class TextStream:
    """The bytes of a text file in UTF-8, without a byte order mark; a context manager."""

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self._path, self._decoder = path, None
        with ExitStack() as files:
            self._stream = _open(path, files)
            start = self._read(_SAMPLE_BYTES)
            self.encoding = encoding or _guess_encoding(start)
            """As given, or as guessed: utf-8, utf-16, utf-32 or cp1252."""
            self.is_plain = _is_utf8(self.encoding) and start.startswith(first_bytes(path, 8))
            """Whether the file holds this stream as it is."""
            if not _is_utf8(self.encoding):
                self._decoder = codecs.getincrementaldecoder(self.encoding)()
            self.sample = self._decoded(start.removeprefix(BOM_UTF8))
            """The first bytes, decoded."""
            self._rest = self.sample
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, size: int) -> bytes:
        """Return the next bytes, about `size`; none at the end. Raises UsageError for a damaged file."""
        if self._rest:
            taken, self._rest = self._rest[:size], self._rest[size:]
            return taken
        while block := self._read(size):
            if decoded := self._decoded(block):
                return decoded
        return self._decoded(b"", is_end=True)

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except _ERRORS as error:
            raise UsageError(f"{self._path}: cannot be decompressed: {error}: it is damaged or cut off") from None

    def _decoded(self, block: bytes, *, is_end: bool = False) -> bytes:
        if self._decoder is None:
            return block
        try:
            return self._decoder.decode(block, is_end).encode()
        except UnicodeError as error:
            raise UsageError(f"{self._path}: is not {self.encoding}: {error}: give --encoding") from None


def _open(path: Path, files: ExitStack) -> Any:
    """Open a file for its decompressed bytes; `files` closes it."""
    start = first_bytes(path, 8)
    return _only_member(path, files) if start.startswith(_ZIP) else files.enter_context(_decompressed(path, start))


@contextmanager
def spooled(path: Path, encoding: str | None = None) -> Generator[Path]:
    """Yield a file with the content in plain UTF-8: the file itself, or a temporary one."""
    with TextStream(path, encoding) as stream:
        if stream.is_plain:
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="karmalake-") as plain:
            while block := stream.read(_SAMPLE_BYTES):
                plain.write(block)
            plain.flush()
            yield Path(plain.name)


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of a file as they are stored."""
    with path.open("rb") as file:
        return file.read(count)


class _Frames(io.RawIOBase):
    """The content of all frames of a file, zeros after them aside, as gzip allows.

    The readers of the libraries take a zstd frame that is cut off for a whole one, and silently drop what follows a
    frame of bzip2 or xz if they cannot read it.
    """

    def __init__(self, path: Path, frame: Callable[[], Any], *max_bytes: int) -> None:
        self._file = path.open("rb")
        self._next_frame, self._frame = frame, frame()
        self._max_bytes = max_bytes
        """Of content at a time, where the library has such a limit: 40 bytes of bzip2 may stand for 46 MB."""
        self._rest, self._content = b"", io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some content; none at the end. Raises EOFError if the file ends within a frame."""
        while not (count := self._content.readinto(buffer)):
            holds_content = not self._frame.eof and not getattr(self._frame, "needs_input", True)
            block = b"" if holds_content else self._rest or self._file.read(_FRAME_BLOCK_BYTES)
            if not block and not holds_content:
                if not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame.eof:
                if not (block := block.lstrip(b"\0")):
                    self._rest = b""
                    continue
                self._frame = self._next_frame()
            self._content = io.BytesIO(self._frame.decompress(block, *self._max_bytes))
            self._rest = self._frame.unused_data
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()


def _decompressed(path: Path, start: bytes) -> Any:
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_Frames(path, _zstd_frame), _SAMPLE_BYTES)
    if start.startswith(b"BZh"):
        return io.BufferedReader(_Frames(path, bz2.BZ2Decompressor, _SAMPLE_BYTES), _SAMPLE_BYTES)
    if start.startswith(b"\xfd7zXZ"):
        return io.BufferedReader(_Frames(path, lzma.LZMADecompressor, _SAMPLE_BYTES), _SAMPLE_BYTES)
    return path.open("rb")


def _only_member(path: Path, files: ExitStack) -> IO[bytes]:
    """Return the stream of the one file in a ZIP archive."""
    try:
        archive = files.enter_context(zipfile.ZipFile(path))
        members = [member for member in archive.infolist() if not _is_incidental(member)]
        if len(members) != 1:
            raise UsageError(f"{path}: has {len(members)} files, and one is read: unpack it, and give its files")
        return files.enter_context(archive.open(members[0]))
    except _ERRORS as error:
        raise UsageError(f"{path}: cannot be unpacked: {error}: unpack it first") from None


def _is_incidental(member: zipfile.ZipInfo) -> bool:
    return member.is_dir() or member.filename.startswith("__MACOSX/")


def _guess_encoding(sample: bytes) -> str:
    if wide := next((name for mark, name in _MARKS.items() if sample.startswith(mark)), _unmarked_encoding(sample)):
        return wide
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return FALLBACK_ENCODING
    return "utf-8"


def _unmarked_encoding(sample: bytes) -> str | None:
    """Return the encoding that NULs at fixed places show: tables have ASCII in any language, such as digits."""
    low, *_, middle, high = (sample[place::4] for place in range(4))
    for name, first, third, last in (("utf-32-le", low, middle, high), ("utf-32-be", high, sample[1::4], low)):
        if any(first) and last and not any(last) and max(third) <= _LAST_PLANE:
            return name
    for name, ascii_bytes, zeros in (
        ("utf-16-le", sample[::2], sample[1::2]),
        ("utf-16-be", sample[1::2], sample[::2]),
    ):
        if zeros.count(0) > _MIN_ASCII_SHARE * len(zeros) and 2 * ascii_bytes.count(0) < zeros.count(0):
            return name
    return None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"}
