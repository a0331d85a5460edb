"""Uploading the published warehouse to the store of a lake on S3, where readers of other machines find it.

The order is: base, changes, pointer, removal (`remote_warehouse.py`). A base is uploaded once. A crash before the
pointer leaves files that no pointer names, and one before the removal those of earlier publications; a later upload
removes both once they are an hour old. An erasure or a withdrawal removes all but its own at once: a reader that is
downloading them starts again. Several publishers of one lake may alternate: each pointer names a whole publication.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from shutil import copyfile

from pipelines.boundary.database import connect
from pipelines.boundary.locked_sql import literal
from pipelines.errors import CorruptionError, NewerFormatError, UsageError
from pipelines.formats import WAREHOUSE
from pipelines.lake.stores import delete_files, is_remote, modified_times, upload, write_text
from pipelines.reputation.base import base_folder
from pipelines.reputation.database_file import remove_database
from pipelines.reputation.remote_warehouse import (
    RemotePublication,
    StoredFile,
    pointer,
    read_publication,
    remote_folder,
)
from pipelines.reputation.sql import one_row, statement
from pipelines.reputation.warehouse_file import Info, stored_info

_ATTEMPTS = 3
"""A publication may remove the base of the file that was copied before it."""
_RETENTION = timedelta(hours=1)
"""How long files that no pointer names remain: a download that began before may still need them."""


def upload_warehouse(warehouse: Path, lake_root: str) -> int:
    """Upload a published warehouse to the store of its lake; return how many bytes were sent, 0 for a lake on disk.

    The warehouse may be replaced meanwhile: the upload is of one publication. Raises TransientError when the store does
    not answer; the pointer then names the previous publication.
    """
    if not is_remote(lake_root):
        return 0
    for _ in range(_ATTEMPTS - 1):
        with suppress(FileNotFoundError):
            return _upload(warehouse, lake_root)
    return _upload(warehouse, lake_root)


def uploaded(lake_root: str) -> RemotePublication | None:
    """Return the newest publication that this release can read; None if there is none, or for a lake on disk."""
    if not is_remote(lake_root):
        return None
    try:
        return read_publication(lake_root)
    except (FileNotFoundError, UsageError, NewerFormatError, CorruptionError):
        return None


def _upload(warehouse: Path, lake_root: str) -> int:
    copy = warehouse.with_name(f"{warehouse.name}.upload")
    try:
        copyfile(warehouse, copy)
        return _upload_copy(copy, lake_root)
    finally:
        remove_database(copy)


def _upload_copy(copy: Path, lake_root: str) -> int:
    folder, previous = remote_folder(lake_root), uploaded(lake_root)
    info, name = _describe(copy)
    base = _base_in_store(folder, previous, name)
    sent = 0 if base else (base_folder(copy) / name).stat().st_size
    publication = RemotePublication(
        format=WAREHOUSE.number,
        karmalake_version=info.karmalake_version,
        lake_version=info.lake_version,
        as_of=info.as_of,
        erasures=info.erasures,
        base=base or _send(base_folder(copy) / name, f"{folder}/base", name),
        changes=_send(copy, folder, f"{info.lake_version:08}-{token_hex(4)}.duckdb"),
    )
    write_text(pointer(lake_root), publication.model_dump_json(indent=1))
    has_erased = previous is not None and previous.erasures != info.erasures
    delete_files(_superseded(lake_root, publication, timedelta(0) if has_erased else _RETENTION))
    return sent + publication.changes.size


def _describe(copy: Path) -> tuple[Info, str]:
    """Return what a warehouse reflects, and the name of its base."""
    with connect() as connection:
        connection.execute(statement("attach_warehouse", path=literal(str(copy))))
        connection.execute("USE warehouse")
        (base,) = one_row(connection.execute(statement("base_named", catalog="warehouse")))
        return stored_info(connection), base


def _base_in_store(folder: str, previous: RemotePublication | None, name: str) -> StoredFile | None:
    """Return the base of a name if the previous publication uploaded it and it is still there."""
    if previous is None or previous.base.name != name or f"base/{name}" not in modified_times(folder):
        return None
    return previous.base


def _send(file: Path, folder: str, name: str) -> StoredFile:
    digest, size = upload(file, f"{folder}/{name}")
    return StoredFile(name=name, size=size, sha256=digest)


def _superseded(lake_root: str, publication: RemotePublication, retention: timedelta) -> Iterable[str]:
    """Return the files of other publications that were written longer ago than `retention`."""
    folder, until = remote_folder(lake_root), datetime.now(UTC) - retention
    named = {*publication.paths(), pointer(lake_root).removeprefix(f"{folder}/")}
    return [
        f"{folder}/{path}"
        for path, written in modified_times(folder).items()
        if path not in named and (not retention or written < until)
    ]
