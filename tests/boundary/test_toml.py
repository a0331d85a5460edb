"""TOML files are read within limits, or rejected with file and line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.boundary.toml import MAX_BYTES, MAX_DEPTH, MAX_PROBLEMS
from pipelines.errors import ConfigurationError, KarmalakeError, PolicyError
from pipelines.notify.rule_file import load_rules, parse_rules
from pipelines.reputation.cases import parse_cases
from pipelines.reputation.policy_file import load_policy, parse_policy, shipped_policies
from pipelines.settings import load_settings
from tests.conftest import REPOSITORY
from tests.notify.test_rules import GOOD
from tests.services.waiting import PATIENCE_SECONDS

HEAD = 'name = "p"\nversion = "1"\n'
_POLICIES = REPOSITORY / "pipelines" / "reputation" / "policies"
_TEXTS = [GOOD, *(path.read_text(encoding="utf-8") for path in sorted(_POLICIES.glob("*.toml")))]
_POLICY, _CASES = ((_POLICIES / name).read_text(encoding="utf-8") for name in ("default.toml", "default.test.toml"))
_SETTINGS = '[kafka]\ntopic = "a"\npartitions = 3\n[history.metadata]\nrating = "stars"\n[lag]\nmax_seconds = 1.5\n'
_VALUES = [
    "1e999999999",
    "-1e-999999999",
    "[1e999999999]",
    "9" * 5_000,
    "0x" + "f" * 5_000,
    "0." + "1" * 5_000,
    "99999999999999999999",
    "nan",
    "-inf",
    '"' + "x" * 100_000 + '"',
    '"\\u0000"',
    "[" * 5_000 + "]" * 5_000,
    "{a = " * 2_000 + "1" + "}" * 2_000,
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2024-02-31",
    "{}",
    "[]",
    "true",
    '""',
    "5",
    "-1",
    '{ from = "x", map = { 1e999999999 = 1 } }',
    '{ from = "x", map = { "1e999999999" = 1, "nan" = 1 } }',
]
_LINES = [
    ".".join(["a"] * 100_000) + " = 1",
    "[" + ".".join(["a"] * 100_000) + "]",
    "a = {" + ".".join(["a"] * 1_000) + " = 1}",
    '"' * 1_000,
    "[[versions]]\n" * 2_000,
    "\n".join(f"key{number} = 1" for number in range(20_000)),
    "[[rules]]",
    "[actions.X]",
    "emit = 5",
    "]" * 3,
    "\x00",
    "\u202e",
]


def _policy(text: str) -> object:
    return parse_policy(text, "f.toml")


def _cases(text: str) -> object:
    return parse_cases(text, "f.toml")


def _rules(text: str) -> object:
    return parse_rules(text, "f.toml")


@st.composite
def _mutations(draw: st.DrawFn) -> str:
    """Return a shipped policy or a rule file with one to three values, lines or characters exchanged."""
    lines = draw(st.sampled_from(_TEXTS)).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["value", "value", "line", "double", "cut"])):
            case "value":
                lines[place] = f"{lines[place].partition('=')[0]}= {draw(st.sampled_from(_VALUES))}"
            case "line":
                lines.insert(place, draw(st.sampled_from(_LINES)))
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[place])
            case _:
                lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))]
    return "\n".join(lines)


@given(_mutations())
def test_any_file_is_read_or_refused(text: str) -> None:
    """Any policy, file of cases or rule file is parsed, or raises one error that names the file; nothing else."""
    refused: list[str] = []
    for read in (_policy, _rules, _cases):
        try:
            read(text)
        except (PolicyError, ConfigurationError) as error:
            refused.append(str(error))
    assert all(message.startswith("f.toml") and len(message) < 30_000 for message in refused)


@pytest.mark.parametrize("value", _VALUES)
def test_any_value_of_any_key_is_read_or_refused(tmp_path: Path, value: str) -> None:
    """Each kind of value, for each key of each kind of file, one at a time."""
    files = ((_POLICY, _policy), (_CASES, _cases), (GOOD, _rules), (_SETTINGS, _settings_in(tmp_path)))
    for source, read in files:
        lines = source.splitlines()
        for place, line in enumerate(lines):
            if "=" in line and not line.lstrip().startswith("#"):
                changed = [*lines[:place], f"{line.partition('=')[0]}= {value}", *lines[place + 1 :]]
                _assert_read_or_refused(read, "\n".join(changed))


def _settings_in(folder: Path) -> Callable[[str], object]:
    def read(text: str) -> object:
        (folder / "karmalake.toml").write_text(text, encoding="utf-8")
        return load_settings({}, folder)

    return read


def _settings_at(path: Path) -> object:
    return load_settings({"KARMALAKE_CONFIG": str(path)})


def _assert_read_or_refused(read: Callable[[str], object], text: str) -> None:
    try:
        read(text)
    except KarmalakeError as error:
        assert len(str(error)) < 30_000  # noqa: PT017 - some values can be meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windows_days = [1e999999999]", "f.toml:3: 1e999999999: is out of range"),
        ("\nwindows_days = [99999999999999999999]", "f.toml:4: windows_days.0: is out of range"),
        (f"x = {'[' * 5_000}", f"f.toml: values are nested over {MAX_DEPTH} deep"),
        (f"x = {'[' * 40}{']' * 40}", f"f.toml:3: x{'.0' * 31}: is nested over {MAX_DEPTH} deep"),
        (f"\n{'a.' * 100_000}b = 1", f"f.toml:4: a key has over {MAX_DEPTH} parts"),
        (f"x = {'9' * 5_000}", "f.toml: holds a number that is too long"),
        ('description = "a\\u0000b"', "f.toml:3: description: has a NUL"),
        (f'description = "{"x" * 70_000}"', "f.toml:3: description: has a NUL, or more than 65,536 characters"),
        ("effective_from = 0001-01-01T00:00:00+23:59", "f.toml:3: effective_from: is outside the years"),
        ("[actions.A]\npoints = 1\nemit = 5", "f.toml:3: actions.A: emit is an array of tables"),
        (
            "[actions.A]\nrating = { from = 'r', minimum = 0.5, maximum = 5 }",
            "f.toml:4: actions.A.rating: minimum 0.5 and maximum 5 need digits = 1, and digits is 0",
        ),
        ("\n".join(f"k{n} = 1" for n in range(5_000)), f"and {5_000 - MAX_PROBLEMS:,} more"),
    ],
)
def test_what_is_refused_is_explained(text: str, message: str) -> None:
    """With file, line and limit."""
    with pytest.raises(PolicyError) as caught:
        _policy(HEAD + text)
    assert message in str(caught.value)


@pytest.mark.parametrize("load", [load_policy, load_rules, _settings_at])
def test_a_file_that_is_not_text_of_bounded_size_is_refused(tmp_path: Path, load: Callable[[Path], object]) -> None:
    """100 MB, another encoding, a folder, a device without an end: an error that names the file."""
    large, encoded = tmp_path / "large.toml", tmp_path / "utf16.toml"
    with large.open("wb") as file:
        file.truncate(100_000_000)
    encoded.write_text(HEAD, encoding="utf-16")
    for path, message in ((large, f"larger than {MAX_BYTES:,} bytes"), (encoded, "not UTF-8: save it as UTF-8")):
        with pytest.raises((PolicyError, ConfigurationError), match=message):
            load(path)
    for path in (tmp_path, Path("/dev/zero"), Path("x" * 5_000)):
        with pytest.raises((PolicyError, ConfigurationError)):
            load(path)


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    """Windows editors write one."""
    path = tmp_path / "p.toml"
    path.write_text(HEAD, encoding="utf-8-sig")
    assert load_policy(path).name == "p"


def test_shipped_policies_are_within_the_bounds() -> None:
    """They are far below the limits."""
    assert all((_POLICIES / f"{name}.toml").stat().st_size < MAX_BYTES / 20 for name in shipped_policies())


@pytest.mark.slow
def test_hostile_files_end_in_bounded_time(tmp_path: Path) -> None:
    """All hostile values and lines in one run, in a child process with a timeout."""
    texts = [f"x = {value}" for value in _VALUES] + _LINES
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.toml").write_text(HEAD + text, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from pipelines.errors import PolicyError\n"
        "from pipelines.reputation.policy_file import load_policy\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.toml')):\n"
        "    try: load_policy(path)\n"
        "    except PolicyError: print(path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert len(done.stdout.splitlines()) >= len(texts) - 2
