"""The harness finds each kind of injected fault, with the input, and reports nothing for a sound target."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.contract.decode import Decoded
from tests.conftest import REPOSITORY
from tests.fuzz.__main__ import print_reports, run
from tests.fuzz.finding import Finding, corpus_of, is_new, last_stack, save, save_to_corpus, seeds_of, shape
from tests.fuzz.mutation import MAX_BYTES, mutate_bytes
from tests.fuzz.target import WrongError
from tests.fuzz.targets import NAMES, load, sources
from tests.fuzz.wire import batch_of, parsed, record, with_right_crc
from tests.fuzz.worker import shrink

_FAULTS = {
    "RAISES": "Panic: slice index starts at # but ends at #",
    "HANGS": "hang in outside of our code",
    "SLEEPS": "hang in outside of our code",
    "BUSY": "hang in outside of our code",
    "ALLOCATES": "memory",
    "EXHAUSTS": "MemoryError",
    "SEGFAULTS": "SIGSEGV in outside of our code",
    "ABORTS": "SIGABRT in outside of our code",
    "ENDS": "exit-3 in outside of our code",
    "LOSES": "WrongError: rows",
    "SOUND": None,
    "BROKEN": "the target itself is broken",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the findings of a few seconds on each faulty target; LOSES starts a real decoder, which takes longer."""
    folder = tmp_path_factory.mktemp("findings")
    names = {name: f"tests.fuzz.faulty_targets:{name}" for name in _FAULTS}
    reports = [
        *run([names[name] for name in names if name != "LOSES"], 2.0, folder),
        *run([names["LOSES"]], 20.0, folder),
    ]
    found = {report["target"]: report for report in reports}
    return {name: found[target] for name, target in names.items()}


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", _FAULTS)
def test_a_faulty_target_is_found(name: str, reports: dict[str, dict[str, Any]]) -> None:
    """Each fault is reported once, with a minimal input."""
    report, expected = reports[name], _FAULTS[name]
    if expected is None:
        assert report["findings"] == []
        assert report["inputs"] > 100
        return
    assert sum(expected in finding for finding in report["findings"]) == 1
    assert name == "LOSES" or len(report["findings"]) == 1  # it runs a real decoder
    if name not in {"HANGS", "SLEEPS", "BUSY", "ALLOCATES", "LOSES", "BROKEN"}:
        assert Path(report["files"][0]).read_bytes() == b"!"
    elif name not in {"LOSES", "BROKEN"}:
        assert b"!" in Path(report["files"][0]).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "function"), [("HANGS", "_hang"), ("SLEEPS", "<lambda>"), ("BUSY", "_recurse")])
def test_a_hang_has_the_stack_of_the_child(name: str, function: str, reports: dict[str, dict[str, Any]]) -> None:
    """A child that calls functions, sleeps or is in C code writes where it is, and does not die of it."""
    text = Path(reports[name]["files"][0]).with_suffix(".txt").read_text(encoding="utf-8")
    assert f"in {function}\n" in last_stack(text)


@pytest.mark.slow
def test_the_command_says_what_was_found_and_fails(tmp_path: Path) -> None:
    """It prints a table, the finding with its input and counts; the exit code is 1; `--replay` reproduces it."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", "1", str(tmp_path), "1", "tests.fuzz.faulty_targets:RAISES"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    [path] = json.loads(done.stdout)["files"]
    report = (Path(path).with_suffix(".txt")).read_text(encoding="utf-8")
    assert report.startswith(f"python -m tests.fuzz tests.fuzz.faulty_targets:RAISES --replay {path}\n")
    assert "Panic: slice index starts at 10 but ends at 0" in report
    assert corpus_of("tests.fuzz.faulty_targets:RAISES", tmp_path, random.Random(0))


def test_a_campaign_resumes_from_the_inputs_of_earlier_ones(tmp_path: Path) -> None:
    """With the same folder; of very many inputs it takes some, chosen by its seed."""
    assert corpus_of("json", tmp_path, random.Random(1)) == []
    inputs = {b"%d" % number for number in range(400)}
    for data in inputs:
        save_to_corpus(data, "json", tmp_path)
    first, second = (corpus_of("json", tmp_path, random.Random(seed)) for seed in (1, 2))
    assert set(first) < inputs
    assert len(set(first)) == 300
    assert set(first) != set(second)


def test_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Targets that passed and failed, alone on the last line."""
    report = {"target": "a", "inputs": 1, "kept": 0, "children": 1, "findings": [], "files": []}
    assert print_reports([report]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    assert print_reports([report, report | {"findings": ["memory"]}]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"


@pytest.mark.parametrize("name", NAMES)
def test_every_target_generates_and_mutates_inputs(name: str) -> None:
    """Inputs are within bounds and vary; each target has seeds."""
    target, rng = load(name), random.Random(0)
    inputs = [target.generate(rng) for _ in range(20)]
    assert len({target.mutate(rng, data, target.good)[:MAX_BYTES] for data in inputs}) > 10
    assert seeds_of(name)


@pytest.mark.slow
def test_the_target_of_sources_finds_a_lost_event_and_a_lost_fate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that drops an event of a valid neighbour, or forgets a filtered record, is wrong."""
    decode = sources._decoder()
    assert sources.check(b"{}") == "events"

    def loses_an_event(records: pa.Table) -> Decoded:
        found = decode(records)
        return replace(found, events=found.events.slice(1))

    def loses_a_fate(records: pa.Table) -> Decoded:
        found = decode(records)
        return replace(found, filtered=found.filtered.slice(1))

    for faulty, finding in ((loses_an_event, "a valid neighbour"), (loses_a_fate, "a record has no fate")):
        monkeypatch.setattr(sources, "_decoder", lambda faulty=faulty: faulty)
        with pytest.raises(WrongError, match=finding):
            sources.check(b"{}")


def test_mutations_respect_the_size_limit() -> None:
    """Also if a part is repeated or nested many times."""
    rng, data = random.Random(1), b'{"a": [1, 2]}'
    for _ in range(300):
        data = mutate_bytes(rng, data, b"other 7")
        assert len(data) <= MAX_BYTES


def test_batches_round_trip() -> None:
    """Writer and reader of headers agree, and a mutated batch has the right CRC."""
    written = batch_of([record(b"value", headers=[(b"h", None)])], base_offset=7, first_ms=5)
    data = bytes(written)
    assert bytes(parsed(data)) == data  # pyright: ignore[reportArgumentType]
    assert with_right_crc(data[:17] + b"\0\0\0\0" + data[21:]) == data
    assert with_right_crc(data[:-1]) != data[:-1]
    assert with_right_crc(b"short") == b"short"


def test_shrinking() -> None:
    """Unnecessary parts are removed."""
    assert shrink(b"some text ! and more", lambda data: b"!" in data, float("inf")) == b"!"
    assert shrink(b"some text", lambda _: True, 0.0) == b"some text"


def test_findings_have_signatures() -> None:
    """A signature is message and place without numbers and names; at most three of a kind in one place."""
    assert shape("starts at 10 but 'x' is [1, 2, 3]") == "starts at # but # is [#]"
    known = {"ValueError in a.py f: one", "ValueError in a.py f: two"}
    assert is_new("ValueError in a.py f: three", known)
    assert not is_new("ValueError in a.py f: one", known)
    assert not is_new("ValueError in a.py f: four", known | {"ValueError in a.py f: three"})
    assert is_new("ValueError in a.py g: four", known | {"ValueError in a.py f: three"})


def test_a_finding_is_saved_with_its_command(tmp_path: Path) -> None:
    """The input unchanged, and beside it the command, the signature and the message."""
    path = save(Finding(b"\xff", "error", "E: #", "E: 1"), "json", tmp_path)
    assert path.read_bytes() == b"\xff"
    report = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert re.match(r"python -m tests.fuzz json --replay \S+\n\nE: #\n\nE: 1\n", report)
