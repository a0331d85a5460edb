"""Places on the command line, as TOPIC-PARTITION@OFFSET: any text gives a message and an exit code."""

import contextlib
import io
import os
import random
import sys
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

from pipelines.backfill import backfill
from pipelines.cli import main
from pipelines.errors import DEFECT, exit_statuses
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.fuzz.target import Target, demand

_COMMANDS = (
    ("dead-letters", "show", "{}"),
    ("dead-letters", "requeue", "--place", "{}"),
    ("dead-letters", "discard", "--why", "tried", "--place", "{}"),
    ("skip", "{}", "--why", "tried"),
    ("drain", "--accept-rejections", "{}"),
    ("drain", "--max-batches", "{}"),
)
"""A release without one of these commands refuses it, which is a valid outcome."""
_TOPICS = ("events", "a-b-c", "file:/x/y", "", "\u202e", "\x1b[2J", "e" * 300, "[red]x[/red]", "%s", "'; DROP TABLE x")
_NUMBERS = (
    "0",
    "1",
    "-1",
    "00",
    "1e3",
    "9" * 30,
    "\u0661",
    "",
    " 1",
    "0x1",
    "2147483648",
    "9223372036854775808",
    "\u00b2",
)
_GOOD = "the place of the dead letter"
_EXIT_CODES = {0} | {status.exit_code for status in exit_statuses() if status != DEFECT}
_MAX_INPUT_BYTES = 4_000
_MAX_PRINTED = 20_000


def generate(rng: random.Random) -> bytes:
    """Return the number of a command, and a place."""
    place = f"{rng.choice(_TOPICS)}-{rng.choice(_NUMBERS)}@{rng.choice(_NUMBERS)}"
    if rng.random() < 0.3:
        place = place.replace(rng.choice("-@"), rng.choice(("", "@", "--", "\x00")))
    return bytes([rng.randrange(len(_COMMANDS))]) + place.encode()


def check(data: bytes) -> str:
    """Run the command in this process, on a lake with dead letters and without a broker."""
    command = _COMMANDS[(data[:1] or b"\0")[0] % len(_COMMANDS)]
    place = data[1:_MAX_INPUT_BYTES].replace(b"\0", b"").decode("utf-8", "surrogateescape")  # as in sys.argv
    argument = _place() if place == _GOOD else place
    code, printed = _run([argument if part == "{}" else part for part in command])
    demand(code in _EXIT_CODES, f"exit code {code}")
    demand(code or place == _GOOD or command[1] != "show", "an invalid place is shown")
    demand(len(printed) < _MAX_PRINTED, f"{len(printed)} characters are printed")
    control_characters = {char for char in printed if unicodedata.category(char) in {"Cc", "Cf"} and char != "\n"}
    demand(not control_characters, f"control characters are printed: {sorted(map(ascii, control_characters))}")
    return f"{command[0]} {code}"


def _run(arguments: list[str]) -> tuple[object, str]:
    printed = io.StringIO()
    sys.argv = ["karmalake", *arguments]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as end:
            return end.code or 0, printed.getvalue()
    return 0, printed.getvalue()


@cache
def _place() -> str:
    """Return the place of a dead letter in a new lake, and make the commands use that lake."""
    folder = Path(tempfile.mkdtemp())
    file = folder / "rows.csv"
    file.write_text("user,at\nu-1,2026-01-01T00:00:00Z\nu-2,never\n", encoding="utf-8")
    backfill(Settings(data_dir=folder / "data"), file, ColumnMapping("user", "at", "iso", "Rated"), lambda _: None)
    os.environ["KARMALAKE_DATA_DIR"] = str(folder / "data")
    os.environ["KARMALAKE_KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
    os.chdir(folder)
    return f"file:{file}-0@1"


TARGETS = {"places": Target(generate, check, b"\0" + _GOOD.encode(), ())}
