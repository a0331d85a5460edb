"""What a caller hands over to load, as local files: paths, folders, patterns, objects of S3, standard input, frames.

Whatever is not a local file is copied to a temporary one and identified by its content, so that a load that was killed
continues from its last commit.
"""

import os
import re
import sys
import tempfile
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.fs as pa_fs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.errors import KarmalakeError, UsageError, one_line
from pipelines.lake.stores import is_remote, resolve_store, translate_store_errors

STANDARD_INPUT = "-"
_FRAME = "frame"
UNNAMED = frozenset({STANDARD_INPUT, _FRAME})
"""The addresses of standard input and frames, unless the caller names them."""
_MAX_NAME_CHARS = 255
_BLOCK_BYTES = 1024 * 1024
_DELTA_LOG = "_delta_log"
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:/")
"""How a path begins that is not within a folder: at the root, or with a scheme."""
_FRAME_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class InputFile:
    """A local file with the content of an address."""

    path: Path
    name: str = ""
    """The address, if the file is a copy."""
    content: str = ""
    """A digest of the content, if the file is a copy."""


def find_files(addresses: Iterable[str | Path]) -> list[str]:
    """Return the files of addresses: a folder has those in it, a pattern its matches, a Delta table its data files.

    Raises UsageError for an address without files, for a folder that cannot be read, for a link within a folder, or to
    a match of a pattern, that leads out of it or nowhere, and for a name that is not UTF-8. Hidden files and folders,
    and those that begin with `_` as unfinished ones of Spark do, do not count, except as data files of a Delta table.
    """
    found = [file for address in map(str, addresses) for file in _files_at(address)]
    for file in found:
        _check_path(file)
    return found


@contextmanager
def local_file(address: "str | Path | Any", name: str = "") -> Generator[InputFile]:
    """Yield a local file with the content of a path, an s3:// address, `-` for standard input, or a frame.

    A frame is one of polars, pandas or Arrow, or a relation of DuckDB. `name` is its address, or that of standard
    input; an error of the caller that names the copy names the address instead. Raises UsageError for anything else,
    and TransientError when an object store does not answer.
    """
    if name:
        _check_name(address, name)
    if isinstance(address, Path) or (isinstance(address, str) and not _is_copied(address)):
        path = Path(address)
        if path.exists() and not path.is_file() and not path.is_dir():  # a file is read several times
            raise UsageError(f"{path}: it is a pipe or a device: redirect it to standard input, and give -")
        yield InputFile(path)
        return
    shown = name or (address if isinstance(address, str) else _FRAME)
    suffix = "".join(Path(address).suffixes) if isinstance(address, str) else ".arrow"
    with tempfile.TemporaryDirectory(prefix="karmalake-") as folder:
        path = Path(folder).resolve() / f"input{suffix}"
        with path.open("wb") as file:
            _copy(address, file)
        with path.open("rb") as file:
            digest = _digest(file)
        try:
            yield InputFile(path, shown, digest)
        except KarmalakeError as error:
            error.args = (str(error).replace(str(path), shown),)
            raise


def _check_name(address: Any, name: str) -> None:
    """Raise UsageError for the name of what has one, and for one that cannot be typed."""
    if isinstance(address, str | Path) and address != STANDARD_INPUT:
        raise UsageError(f"{address} has a name: only standard input (-) and frames are given one")
    if not name.isprintable() or len(name) > _MAX_NAME_CHARS:
        raise UsageError(
            f"the name {name[:_MAX_NAME_CHARS]!r} has control characters, or more than 255: choose another"
        )


def _check_path(file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{file!r} is not a name in UTF-8: rename the file") from None
    if "\0" in file:
        raise UsageError(f"{file!r} has a NUL, which no file name has: correct the address, or export the table again")


def _is_copied(address: str) -> bool:
    return address == STANDARD_INPUT or is_remote(address)


def _files_at(address: str) -> Sequence[str]:
    if address == STANDARD_INPUT:
        return [address]
    if is_remote(address):
        return _objects_at(address)
    if has_magic(address) and not Path(address).exists():
        folder = Path(*takewhile(lambda part: not has_magic(part), Path(address).parts))
        _check_folders(folder, Path(address).parts)
        matches = glob(address, recursive=True)  # noqa: PTH207 - patterns as in a shell
        return _some(address, _files_in(folder, _visible(folder, matches, Path(address).parts)))
    if (Path(address) / _DELTA_LOG).is_dir():
        return _delta_files(address)
    if Path(address).is_dir():
        return _some(address, _files_in(Path(address), _visible(Path(address), _walk(Path(address)))))
    return [address]


def _objects_at(address: str) -> Sequence[str]:
    store, path = resolve_store(address.rstrip("/"))
    with translate_store_errors(address):
        if store.get_file_info(path).type != pa_fs.FileType.Directory:
            return [address]
        if store.get_file_info(f"{path}/{_DELTA_LOG}").type == pa_fs.FileType.Directory:
            return _delta_files(address)
        found = store.get_file_info(pa_fs.FileSelector(path, recursive=True))
    visible = _visible(Path(path), (info.path for info in found if info.is_file))
    return _some(address, (f"s3://{each}" for each in visible))


def _walk(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder, onerror=_refuse):
        yield from (str(Path(place, name)) for name in (*folders, *files))
        folders[:] = [name for name in folders if not _is_hidden(name)]


def _check_folders(folder: Path, parts: Sequence[str]) -> None:
    """Raise UsageError for a folder in which a pattern looks for names and that cannot be listed: glob skips it."""
    for count, part in enumerate(parts):
        if has_magic(part):
            above = str(Path(*parts[: count + (part == "**")])).rstrip(os.sep)
            for place in _visible(folder, glob(above + os.sep, recursive=True), parts):  # noqa: PTH207 - as a shell
                try:
                    os.scandir(place).close()
                except OSError as error:
                    _refuse(error)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: {error.strerror}")


def _visible(folder: Path, paths: Iterable[str], written: Collection[str] = ()) -> Iterator[str]:
    """Yield the paths in a folder with no hidden part but those that are `written` in a pattern."""
    for path in paths:
        parts = Path(path).relative_to(folder).parts
        if not any(_is_hidden(part) and part not in written for part in parts):
            yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)  # _year=2024 is a partition


def _files_in(folder: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yield those of the paths in a folder that are files.

    Raises UsageError for a link out of the folder: who writes the folder may not have the rights of who loads it.
    """
    root = os.path.realpath(folder)
    for path in paths:
        _check_path(path)
        target = os.path.realpath(path)
        if not Path(target).is_relative_to(root):
            raise UsageError(
                f"{path}: it is a link out of the folder {folder}, to {target}: give that path itself, or copy it"
            )
        if not Path(target).exists():
            raise UsageError(f"{path}: the file {target} is missing: restore it, or remove what names it")
        if Path(target).is_file():
            yield path


def _some(address: str, paths: Iterable[str]) -> list[str]:
    """Return paths in order. Raises UsageError if there are none."""
    found = sorted(paths)
    if not found:
        raise UsageError(f"{address}: there are no files")
    return found


def _delta_files(address: str) -> list[str]:
    """Return the data files of the newest version of a Delta table, all in its folder.

    The log names them as URLs, decoded once: a partition's folder is itself encoded, such as `city=New%20York`.
    """
    try:
        table = DeltaTable(address)
        features = table.protocol().reader_features or ()
        if set(features) & {"deletionVectors", "columnMapping"}:
            raise UsageError(f"{address}: it has {' and '.join(features)}, which are not read: export it as Parquet")
        named = pa.table(table.get_add_actions()).column("path").to_pylist()
    except (DeltaError, OSError) as error:
        raise UsageError(f"{address}: cannot be read as a Delta table: {one_line(error)}") from None
    folder = unquote(table.table_uri.removeprefix("file://")).rstrip("/")
    paths = [unquote(path) for path in named]
    for path in paths:
        if ".." in path.split("/") or _ABSOLUTE.match(path):
            raise UsageError(
                f"{address}: its log names the file {path!r}, which is outside the table's folder, as in a shallow "
                "clone: export the table as Parquet"
            )
    if is_remote(address):
        return _some(address, (f"{folder}/{path}" for path in paths))
    return _some(address, _files_in(Path(folder), (f"{folder}/{path}" for path in paths)))


def _copy(address: Any, file: BinaryIO) -> None:
    if not isinstance(address, str):
        _write_frame(address, file)
    elif address == STANDARD_INPUT:
        _copy_stream(sys.stdin.buffer, file)
    else:
        store, path = resolve_store(address)
        try:
            with translate_store_errors(address), store.open_input_stream(path, compression=None) as stream:
                _copy_stream(stream, file)
        except FileNotFoundError:
            remedy = ": patterns are for local files; give the folder" if has_magic(address) else ""
            raise UsageError(f"{address}: there is no such object{remedy}") from None


def _copy_stream(source: "IO[bytes] | Any", file: BinaryIO) -> None:
    while block := source.read(_BLOCK_BYTES):
        file.write(block)


def _digest(file: BinaryIO) -> str:
    digest = blake2b(digest_size=16)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _write_frame(frame: Any, file: BinaryIO) -> None:
    batches = iter(_batches(frame))
    first = next(batches)
    with pa.ipc.new_file(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _batches(frame: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a frame or relation as record batches, at least one."""
    if isinstance(frame, duckdb.DuckDBPyRelation):
        frame = frame.to_arrow_reader(_FRAME_ROWS)
    elif isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        frame = frame.to_arrow()
    if isinstance(frame, pa.RecordBatchReader):
        frame = frame.read_all()
    elif type(frame).__module__.partition(".")[0] == "pandas":
        frame = pa.Table.from_pandas(frame)
    if not isinstance(frame, pa.Table):
        raise UsageError(
            f"{type(frame).__name__} cannot be loaded: give a path, a frame of polars, pandas or Arrow, or a relation "
            "of DuckDB"
        )
    yield from frame.to_batches(_FRAME_ROWS) or [pa.RecordBatch.from_pylist([], schema=frame.schema)]
