"""Data of other releases: older data opens and is added to, newer data is refused in one sentence (`formats.py`)."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from deltalake import DeltaTable

from pipelines.cli.app import app
from pipelines.errors import NewerFormatError, UsageError
from pipelines.formats import DOCUMENTS, FORMATS, INDEX, LAKE, TOMBSTONES, WAREHOUSE
from pipelines.lake.index import open_index
from pipelines.lake.manifest import manifest_text
from pipelines.lake.tables import TABLES, open_lake
from pipelines.lake.tombstone_file import append_tombstones, read_tombstones
from pipelines.lake.upkeep import compact
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.verify import verify
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.read import published
from pipelines.settings import Settings
from tests.commands import KARMALAKE, run
from tests.conftest import REPOSITORY
from tests.draining import drain_all, query, send, valid_records, with_ingest
from tests.golden.folders import archives, describe, make_newer, make_older, unpack
from tests.test_crashes import environment


@pytest.fixture(params=archives(), ids=lambda archive: archive.name.removesuffix(".tar.gz"))
def golden(request: pytest.FixtureRequest) -> Path:
    """Return the golden data folder of each release, packed."""
    return request.param


def test_there_is_a_golden_folder_of_this_release() -> None:
    """Each release adds one, so that later ones open it; it stays small."""
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"{version[1]}.tar.gz" in {archive.name for archive in archives()}
    assert all(archive.stat().st_size < 500_000 for archive in archives())


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True], ids=["as it is", "without numbers and columns"])
def test_data_of_each_release_opens_and_is_added_to(golden: Path, settings: Settings, *, older: bool) -> None:
    """Read, explained, drained into, compacted, erased and verified (`once`, `nothing-lost`, `erasable`).

    The older folder lacks nullable columns and a nested field: they are added, and null (a count: none) in its rows.
    """
    settings = with_ingest(settings)
    expected = unpack(golden, settings.data_dir)
    if older:
        make_older(settings.data_dir)
    derived = refresh_warehouse(settings)
    assert derived.rebuild_reason is not None or not older  # a later release may continue, or rebuild for its SQL
    assert describe(settings) == expected
    _assert_current(settings)
    with Warehouse(settings.warehouse_path) as warehouse:
        assert warehouse.explain("user-1").height > 0
    send(settings, valid_records(range(20)))
    assert sum(record.total("accepted") + record.total("duplicates") for record in drain_all(settings)) > 0
    merged = compact(open_lake(settings.lake_root), min_files=2)
    assert {done.table for done in merged} >= {"events", "commits"}
    erased = erase_without_documents(settings, ["user-2"])
    assert erased.rows.events == sum(user == "user-2" for _, user, _, _ in expected["events"])
    refresh_warehouse(settings)
    assert query(settings, "SELECT count(*) FROM events WHERE user_id IN ('user-2', 'user-3')") == [(0,)]
    assert [check for check in verify(settings) if check.passed is False] == []
    assert audit(settings).passed


def _assert_current(settings: Settings) -> None:
    """Assert that every table has the number and all columns of this release, for other engines, too."""
    for name, schema in TABLES.items():
        table = DeltaTable(f"{settings.lake_root}/{name}")
        assert table.metadata().configuration["karmalake.format"] == str(LAKE.number)
        stored = pa.schema(table.schema())
        assert set(stored.names) == set(schema.names)
        if name == "commits":
            nested = stored.field("ranges").type.value_type
            assert {nested.field(n).name for n in range(nested.num_fields)} >= {"lost", "gaps"}


def test_caches_of_another_format_are_rebuilt(golden: Path, settings: Settings) -> None:
    """The index of a newer release is not read, and not refused (`once`)."""
    unpack(golden, settings.data_dir)
    (manifest,) = settings.index_dir.glob("slot-*/manifest.json")
    text = manifest.read_text()
    assert json.loads(text)["format"] <= INDEX.number
    manifest.write_text(manifest_text(json.loads(text) | {"format": INDEX.number + 1}))
    lake = open_lake(settings.lake_root)
    index = open_index(settings.index_dir, lake, lake.table("events"))
    index.close()
    rebuilt = json.loads(manifest.read_text())
    assert rebuilt["format"] == INDEX.number
    assert rebuilt["key"] != json.loads(text)["key"]


def test_a_newer_warehouse_is_not_read_and_is_rebuilt(golden: Path, settings: Settings) -> None:
    """A reader is refused; a refresh computes it from the lake, if this release knows the lake."""
    unpack(golden, settings.data_dir)
    make_newer(settings.data_dir)
    with pytest.raises(NewerFormatError, match=r"warehouse.duckdb has format \d+ of the warehouse, .* 99\.0\.0; "):
        Warehouse(settings.warehouse_path)
    _restore_lake(golden, settings)
    assert "has format" in str(refresh_warehouse(settings).rebuild_reason)
    Warehouse(settings.warehouse_path).close()


def test_an_older_warehouse_asks_for_a_refresh(golden: Path, settings: Settings) -> None:
    """A reader learns the command that rebuilds it."""
    unpack(golden, settings.data_dir)
    make_older(settings.data_dir)
    with pytest.raises(UsageError, match="in an older format: run `karmalake refresh`"):
        Warehouse(settings.warehouse_path)


def _restore_lake(golden: Path, settings: Settings) -> None:
    subprocess.run(["rm", "-r", str(settings.data_dir / "lake")], check=True)
    before = {path: path.read_bytes() for path in settings.data_dir.glob("*.duckdb")}
    unpack(golden, settings.data_dir)
    for path, content in before.items():
        path.write_bytes(content)


def test_tombstones_of_a_newer_format_are_refused(tmp_path: Path) -> None:
    """Tombstones that cannot be read would let erased users return (`erasable`)."""
    file = tmp_path / "tombstones.txt"
    tombstone = f"key:{'0' * 64}"
    append_tombstones(file, [tombstone])
    assert read_tombstones(file) == {tombstone}
    file.write_text(f"format {TOMBSTONES.number + 1}\n{tombstone}\n")
    with pytest.raises(NewerFormatError, match=r"tombstones\.txt has format"):
        read_tombstones(file)


def test_documents_of_a_newer_format_are_not_overwritten(
    golden: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older publisher is refused, whatever its stamp; a newer one writes every document again (`fenced`)."""
    unpack(golden, settings.data_dir)
    refresh_warehouse(settings)
    assert publish_warehouse(settings).written > 0
    assert publish_warehouse(settings).written == 0
    with monkeypatch.context() as newer:
        _raise_number(newer, DOCUMENTS)
        assert publish_warehouse(settings).full
    for call in (publish_warehouse, published):
        with pytest.raises(NewerFormatError, match=r"the Redis key .*\.publication has format \d+ of the documents"):
            call(settings)


def _raise_number(patch: pytest.MonkeyPatch, form: object) -> None:
    """Let this process be a newer release for one of FORMATS."""
    import pipelines.serving.publication_state as state  # noqa: PLC0415

    newer = type(DOCUMENTS)(DOCUMENTS.name, DOCUMENTS.number + 1, DOCUMENTS.older)
    assert form is DOCUMENTS
    patch.setattr(state, "DOCUMENTS", newer)
    patch.setattr("pipelines.refresh.Stamp", lambda *values: state.Stamp(*values, format=newer.number))


WRITES: dict[str, list[str]] = {
    "demo": [],
    "drain": [],
    "skip": ["{topic}-0@0", "--why", "x"],
    "stream": [],
    "ingest": [],
    "serve": [],
    "backfill": ["{events}", "--user-id", "u", "--time", "t", "--action-type", "A"],
    "replay": ["--from-beginning"],
    "refresh": [],
    "rebuild": [],
    "publish": [],
    "compact": [],
    "vacuum": [],
    "erase": ["--yes", "--without-documents", "user-1"],
    "copy": ["{folder}/copy"],
    "dead-letters requeue": [],
    "dead-letters discard": ["--why", "x"],
    "policy activate": ["default"],
    "policy rollback": ["--why", "x"],
    "loads withdraw": ["rides@0", "--why", "x"],
    "retract": ["e-1", "--why", "x"],
    "adjust": ["u-1", "5", "--why", "x"],
    "user merge": ["u-1", "u-2", "--why", "x"],
    "user rename": ["u-1", "u-2", "--why", "x"],
}
"""Commands that write to a lake or derive from it, with arguments."""
READS: dict[str, list[str]] = {
    "verify": [],
    "audit": [],
    "lag": [],
    "scores": [],
    "explain": ["user-1"],
    "trend": ["daily"],
    "sql": ["FROM events"],
    "export": ["{folder}/exported.duckdb"],
    "policy diff": ["default", "default"],
    "dead-letters list": [],
    "dead-letters show": ["{topic}-0@0"],
    "dead-letters export": ["{folder}/letters.ndjson"],
    "loads list": [],
    "user export": ["u-1", "--to", "{folder}/exported"],
}
"""Commands that only read, and whose answer could be wrong."""
OTHERS = {
    "local start": "only the local services",
    "local stop": "only the local services",
    "local status": "only the local services",
    "doctor": "reports a newer lake as a finding",
    "errors": "prints a page",
    "contract show": "no data",
    "contract check": "no data",
    "topics ensure": "only the topic",
    "topics check": "only the topic, and checkpoints",
    "topics describe": "only the topic",
    "simulate": "only the topic",
    "emit": "only the topic",
    "relay": "only the topic and the outbox",
    "notify": "only the topic and the destinations",
    "show": "one document, which readers of any release parse",
    "leaderboard": "the store",
    "dagster": "Dagster's page; its runs open the lake as the commands do",
    "dashboard": "a server over the warehouse; it opens it as `scores` does",
    "policy list": "the shipped policies",
    "policy check": "a file",
    "policy test": "files; it derives in memory",
    "sources list": "the source files",
    "sources check": "needs a source; it opens the lake as `backfill --dry-run` does",
    "sources diff": "needs a source; it opens the lake as `replay --into` does",
}


def _commands(command: object, names: tuple[str, ...] = ()) -> Iterator[str]:
    inner: dict[str, object] = getattr(command, "commands", {})
    if not inner:
        yield " ".join(names)
    for name, each in inner.items():
        yield from _commands(each, (*names, name))


def test_every_command_is_classified() -> None:
    """A new command is in WRITES, READS or OTHERS."""
    assert sorted([*WRITES, *READS, *OTHERS]) == sorted(_commands(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder that a newer release wrote."""
    folder = tmp_path_factory.mktemp("newer") / "data"
    unpack(archives()[-1], folder)
    make_newer(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [*WRITES, *READS])
def test_newer_data_is_refused(command: str, newer: Path, settings: Settings, tmp_path: Path) -> None:
    """One sentence: what, where, which release wrote it, what to do. Nothing changes (`atomic`)."""
    settings = settings.model_copy(update={"data_dir": newer})
    send(settings, valid_records(range(3)))
    (tmp_path / "events.csv").write_text("u,t\na,2024-01-01\n")
    places = {"topic": settings.kafka.topic, "events": str(tmp_path / "events.csv"), "folder": str(tmp_path)}
    arguments = [text.format(**places) for text in (WRITES | READS)[command]]
    before = _files(newer / "lake")
    done = run([*KARMALAKE, *command.split(), *arguments], env=_environment(settings), cwd=tmp_path)
    assert done.returncode == NewerFormatError.exit_code, done.stderr
    (sentence,) = re.findall(r"^error KL-NEWER-FORMAT: (.+)$", done.stderr, re.MULTILINE)
    number = LAKE.number + 1 if "of the lake" in sentence else WAREHOUSE.number + 1
    assert f" has format {number} of the " in sentence
    assert str(newer) in sentence
    assert "written by karmalake 99.0.0" in sentence
    assert "install that release or a newer one" in sentence
    assert "Traceback" not in done.stderr
    assert _files(newer / "lake") == before


def _environment(settings: Settings) -> dict[str, str]:
    return environment(settings) | {"COLUMNS": "10000"}


def _files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_the_page_lists_every_format() -> None:
    """With its number and what happens to an older one."""
    page = (REPOSITORY / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z_ ]+) \| (\d+) \| [^|]+ \| (upgraded|rebuilt|ignored)", page, re.MULTILINE)
    assert rows == [(form.name, str(form.number), form.older) for form in FORMATS]
