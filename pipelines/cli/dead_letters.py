"""The commands about dead letters: list, show, requeue, export, discard."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pipelines.cli.options import bare_settings
from pipelines.cli.output import facts, progress, say, table
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.dead_letters import Fate, Selection

app = typer.Typer(no_args_is_help=True, help="Records that are no events: look at them, mend and requeue, or discard.")

_Reason = Annotated[str | None, typer.Option(metavar="CODE", help="Only those with this reason code.")]
_Place = Annotated[
    str | None, typer.Option(metavar="TOPIC-PARTITION@OFFSET", help="Only the one that stood at this place.")
]
_COLUMNS = ("place", "reason", "detail", "fate")


@app.command("list")
def list_letters(
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were requeued or discarded.")] = False,  # noqa: FBT002 - a flag
    limit: Annotated[int, typer.Option(min=1, help="Show so many, the newest.")] = 20,
) -> None:
    """Show how many there are of each reason, and the newest ones."""
    letters = _select(_selection(None if every else "open", reason, None))
    counted = Counter(zip(letters["reason"].to_pylist(), letters["fate"].to_pylist(), strict=True))
    table(("reason", "fate", "records"), [(*kind, records) for kind, records in sorted(counted.items())])
    newest = _rows(letters.slice(max(0, len(letters) - limit)))
    table(_COLUMNS, [(_place(row), row["reason"], row["detail"], row["fate"]) for row in newest])
    say(f"{len(letters):,} dead letters")


@app.command()
def show(place: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="As `list` shows it.")]) -> None:
    """Show everything that is known of one: its bytes, its headers, why it is no event, and what became of it."""
    letters = _rows(_select(_selection(None, None, place)))
    if not letters:
        raise UsageError(f"there is no dead letter at {place}: `karmalake dead-letters list` shows the places")
    for letter in letters:
        headers = {header["key"]: _text(header["value"]) for header in letter["headers"] or ()}
        shown = letter | {"key": _text(letter["key"]), "value": _text(letter["value"]), "headers": headers or None}
        facts([(name.replace("_", " "), value) for name, value in shown.items()])


@app.command()
def requeue(reason: _Reason = None, place: _Place = None) -> None:
    """Decode them again, after contract or bounds were mended; those that are events by now go into the lake.

    Each counts once by its event_id, however often it is requeued or sent again. Scores follow with the next refresh.
    Rows of a file cannot be mended here: mend the file or the mapping, and load it again.
    """
    from pipelines.dead_letters import requeue as again  # noqa: PLC0415

    with progress("requeuing"):
        done = again(bare_settings(), _selection("open", reason, place))
    facts(
        [
            ("accepted", done.accepted),
            ("duplicates", done.duplicates),
            ("conflicts", done.conflicts),
            ("still no events", done.still_rejected),
        ]
    )


@app.command()
def discard(
    why: Annotated[str, typer.Option(help="Stays on the record.")], reason: _Reason = None, place: _Place = None
) -> None:
    """Give them up, with a reason, so that they are not listed any more. Their bytes stay in the lake."""
    from pipelines.dead_letters import discard as give_up  # noqa: PLC0415

    say(f"{give_up(bare_settings(), _selection('open', reason, place), why):,} dead letters discarded")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="A .parquet or .ndjson file; in the latter, bytes are base64.")],
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were requeued or discarded.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write them to a file, for whoever has to mend the producer."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    letters = _select(_selection(None if every else "open", reason, None))
    match file.suffix:
        case ".parquet":
            pq.write_table(letters, file)
        case ".ndjson":
            file.write_text("".join(json.dumps(row, default=_plain) + "\n" for row in _rows(letters)), "utf-8")
        case _:
            raise UsageError(f"{file}: the ending is neither .parquet nor .ndjson")
    say(f"{len(letters):,} dead letters written to {file}")


def _selection(fate: "Fate | None", reason: str | None, place: str | None) -> "Selection":
    from pipelines.contract.rejection import Reason  # noqa: PLC0415
    from pipelines.dead_letters import Selection  # noqa: PLC0415

    if reason is not None and reason not in set(Reason):
        raise UsageError(f"there is no reason {reason!r}: {', '.join(Reason)}")
    return Selection(fate, reason, place)


def _select(selection: "Selection") -> "pa.Table":
    from pipelines.dead_letters import select  # noqa: PLC0415

    return select(bare_settings(), selection)


def _rows(letters: "pa.Table") -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", letters.to_pylist())


def _place(letter: dict[str, Any]) -> str:
    return f"{letter['topic']}-{letter['topic_partition']}@{letter['offset']}"


def _text(value: bytes | None) -> str | None:
    """Return bytes as text where they are, else as Python writes them."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
