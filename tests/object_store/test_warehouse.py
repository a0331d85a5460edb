"""The published warehouse beside a lake on S3, as readers on other machines open it (`atomic`, `erasable`)."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from karmalake import ColumnMapping, backfill, open_warehouse
from pipelines import live_uploader
from pipelines.errors import CorruptionError, KarmalakeError, NewerFormatError, TransientError, UsageError
from pipelines.formats import WAREHOUSE
from pipelines.lake.stores import delete_files, modified_times, read_text, write_text
from pipelines.lake.tables import create_lake
from pipelines.live_uploader import LiveUploader
from pipelines.operate.erase import erase_without_documents
from pipelines.refresh import rebuild_warehouse, refresh_warehouse
from pipelines.reputation import remote_warehouse, warehouse_upload
from pipelines.reputation.remote_warehouse import pointer, read_publication, remote_folder
from pipelines.settings import Settings
from tests.services.object_store import BUCKET, ObjectStore

_USERS = "SELECT user_id FROM reputation ORDER BY ALL"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of this reader, as that of another machine, without settings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def busless(tmp_path: Path, uri: str) -> Settings:
    """Return settings of a lake on S3 that needs no other service."""
    return Settings.model_validate({"data_dir": tmp_path / "data", "lake": {"uri": uri}})


def _load(settings: Settings, *users: str) -> None:
    rows = pl.DataFrame({"user_id": users, "timestamp": "2024-01-01"})
    backfill(settings, rows, ColumnMapping("user_id", "timestamp", "iso", "RatingReceived"))


def _files(uri: str) -> set[str]:
    return {*modified_times(remote_folder(uri))}


def _cached(cache: Path) -> set[str]:
    return {file.name for file in cache.rglob("*.duckdb")}


@pytest.mark.slow
def test_another_machine_opens_what_was_published(busless: Settings, uri: str, cache: Path) -> None:
    """Scores come from a private cache, events from S3; a refresh downloads what changed, an open handle keeps the old.

    Earlier files remain in the bucket for downloads in progress, and are no longer in the cache.
    """
    _load(busless, "a", "b")
    refresh_warehouse(busless)
    first = read_publication(uri)
    with open_warehouse(f"{uri}/") as warehouse, open_warehouse(uri) as kept:
        assert warehouse.sql(_USERS)["user_id"].to_list() == ["a", "b"]
        assert warehouse.events("a").height == 1
        assert warehouse.shown_scores("a").height > 1
        assert str(uri) in repr(warehouse)
        assert not warehouse.refresh()
        _load(busless, "c")
        refresh_warehouse(busless)
        assert warehouse.refresh()
        assert warehouse.sql(_USERS)["user_id"].to_list() == ["a", "b", "c"]
        assert kept.sql(_USERS).height == 2
    second = read_publication(uri)
    assert second.base == first.base
    assert _files(uri) == {*first.paths(), *second.paths(), "published.json"}
    assert _cached(cache) == {second.base.name, second.changes.name}
    assert {folder.stat().st_mode & 0o077 for folder in cache.rglob("*") if folder.is_dir()} == {0}


@pytest.mark.slow
def test_only_what_changed_is_downloaded(
    busless: Settings, uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing while the publication is the same, and not a base that is there; the base is uploaded once, too."""
    downloads: list[str] = []
    uploads: list[str] = []
    _record(monkeypatch, remote_warehouse, "_download_file", lambda location, *_: downloads.append(location))
    _record(monkeypatch, warehouse_upload, "_send", lambda _, folder, name: uploads.append(f"{folder}/{name}"))
    for publications in (1, 2):
        _load(busless, f"user-{publications}")
        refresh_warehouse(busless)
        for _ in range(2):
            open_warehouse(uri).close()
        assert len(downloads) == publications + 1
    assert downloads == uploads
    (damaged,) = (file for file in cache.rglob("*.duckdb") if file.parent.name != "base")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    open_warehouse(uri).close()
    assert len(downloads) == 4


def _record(monkeypatch: pytest.MonkeyPatch, module: object, name: str, note: Callable[..., object]) -> None:
    """Call `note` before each call of a function of a module."""
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: (note(*arguments), function(*arguments))[1])


@pytest.mark.slow
def test_a_killed_upload_shows_nothing(busless: Settings, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the pointer is written, readers have the publication before; the next upload is whole (`atomic`)."""
    _load(busless, "a")
    refresh_warehouse(busless)
    _load(busless, "b")
    for step in ("_send", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(warehouse_upload, step, _killed)
            with pytest.raises(KeyboardInterrupt):
                refresh_warehouse(busless)
        with open_warehouse(uri) as warehouse:
            assert warehouse.sql(_USERS)["user_id"].to_list() == ["a"]
    refresh_warehouse(busless)
    with open_warehouse(uri) as warehouse:
        assert warehouse.sql(_USERS)["user_id"].to_list() == ["a", "b"]
    assert not list(busless.data_dir.glob("*.upload*"))


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_files_that_are_removed_during_a_download(busless: Settings, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download starts again with the files that replaced them; files that never come are an outage."""
    _load(busless, "a")
    refresh_warehouse(busless)

    def erase_first(*_: object) -> None:
        if not erased:
            erased.append(erase_without_documents(busless, ["b"]))

    erased: list[object] = []
    _load(busless, "b")
    _record(monkeypatch, remote_warehouse, "_download_file", erase_first)
    with open_warehouse(uri) as warehouse:
        assert warehouse.sql(_USERS)["user_id"].to_list() == ["a"]
    delete_files(f"{remote_folder(uri)}/{path}" for path in read_publication(uri).paths())
    rebuild_warehouse(busless)
    delete_files([f"{remote_folder(uri)}/{read_publication(uri).changes.name}"])
    with pytest.raises(TransientError, match=r"were replaced while they were downloaded: try again"):
        open_warehouse(uri)


@pytest.mark.slow
@pytest.mark.parametrize("has_warehouse", [True, False])
def test_an_erasure_removes_earlier_publications(busless: Settings, uri: str, has_warehouse: bool) -> None:
    """At once, also from a machine without a warehouse (`erasable`)."""
    _load(busless, "a", "b")
    refresh_warehouse(busless)
    _load(busless, "c")
    refresh_warehouse(busless)
    other = busless.model_copy(update={"data_dir": busless.data_dir.with_name("other")})
    erase_without_documents(busless if has_warehouse else other, ["b"])
    assert _files(uri) == {*read_publication(uri).paths(), "published.json"}
    with open_warehouse(uri) as warehouse:
        assert warehouse.sql(_USERS)["user_id"].to_list() == ["a", "c"]


@pytest.mark.slow
def test_old_files_are_removed(busless: Settings, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of earlier publications, and of an upload that was killed, once they are older than a download takes."""
    _load(busless, "a")
    write_text(f"{remote_folder(uri)}/00000000-00000000.duckdb", "a part")
    for _ in range(2):
        refresh_warehouse(busless)
    assert len(_files(uri)) == 5
    monkeypatch.setattr(warehouse_upload, "_RETENTION", warehouse_upload._RETENTION * -1)
    refresh_warehouse(busless)
    assert _files(uri) == {*read_publication(uri).paths(), "published.json"}


@pytest.mark.slow
def test_nothing_to_open(uri: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is a sentence that names the address and the setting, and never asks a reader to ingest."""
    bucket = f"s3://{BUCKET}"
    assert f"there is no lake and no published warehouse at {uri}" in _refusal(uri)
    assert "there is no bucket nowhere" in _refusal("s3://nowhere/lake")
    assert f"{bucket} is not s3://bucket/folder" in _refusal(bucket)
    assert "gs://bucket/lake is not s3://bucket/folder" in _refusal("gs://bucket/lake")
    create_lake(uri)
    assert f"there is a lake at {uri}, but no warehouse was published there yet" in _refusal(uri)
    object_store.toggle_refusals()
    try:
        assert "check AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID" in _refusal(uri, TransientError)
    finally:
        object_store.toggle_refusals()


def _refusal(uri: str, expected: type[KarmalakeError] = UsageError) -> str:
    with pytest.raises(expected) as refused:
        open_warehouse(uri)
    assert not any(word in str(refused.value) for word in ("drain", "ingest", "stream"))
    return str(refused.value)


@pytest.mark.slow
def test_a_warehouse_of_another_release(busless: Settings, uri: str) -> None:
    """A newer one and an older one name the release that wrote them; the publisher's next one replaces it."""
    _load(busless, "a")
    refresh_warehouse(busless)
    before = json.loads(read_text(pointer(uri)))
    _point(uri, before | {"format": WAREHOUSE.number + 1, "karmalake_version": "9.9", "base": None})
    assert "written by karmalake 9.9" in _refusal(uri, NewerFormatError)
    _point(uri, before | {"format": WAREHOUSE.number - 1, "karmalake_version": "0.0.1"})
    assert "install that release here, or upgrade the publisher" in _refusal(uri)
    _point(uri, before | {"changes": before["changes"] | {"name": "../../.profile"}})
    assert "is damaged" in _refusal(uri, CorruptionError)
    _point(uri, before | {"changes": before["changes"] | {"sha256": "0"}})
    assert "differs from what was uploaded" in _refusal(uri, CorruptionError)
    refresh_warehouse(busless)
    open_warehouse(uri).close()


def _point(uri: str, content: dict[str, object]) -> None:
    write_text(pointer(uri), json.dumps(content))


def test_stream_uploads_seldom(busless: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first publication, then none before the interval, but one after an erasure, and the last one."""
    uploads: list[object] = []
    failures = iter([TransientError("away"), None, None])

    def upload(*arguments: object) -> int:
        uploads.append(arguments)
        if failure := next(failures, None):
            raise failure
        return 0

    monkeypatch.setattr(live_uploader, "upload_warehouse", upload)
    published: Future[None] = Future()
    published.set_result(None)
    with ThreadPoolExecutor(1) as pool:
        uploader = LiveUploader(busless, pool)

        def offer(erasures: int) -> int:
            uploader.offer(published, erasures)
            pool.submit(int).result()
            return len(uploads)

        assert [offer(0), offer(0), offer(0)] == [1, 2, 2], "a failed upload is repeated"
        assert [offer(1), offer(1)] == [3, 3]
        uploader.finish(published, 1)
        assert len(uploads) == 3, "the end uploads nothing that no erasure needs"
        uploader.finish(published, 2)
    assert len(uploads) == 4


@pytest.mark.slow
def test_a_lake_on_disk_uploads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it ask for anything."""
    monkeypatch.setattr(warehouse_upload, "_upload", _killed)
    settings = Settings(data_dir=tmp_path)
    _load(settings, "a")
    refresh_warehouse(settings)
