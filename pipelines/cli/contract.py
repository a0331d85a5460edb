"""The commands about the event contract: show it, and judge a change of it."""

from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import say, say_file, table
from pipelines.errors import KarmalakeError

app = typer.Typer(no_args_is_help=True, help="The event contract: its schemas, and whether a change is compatible.")


class Form(StrEnum):
    """The formats that the contract is written in."""

    PROTOBUF = "protobuf"
    AVRO = "avro"
    JSON = "json"


class Wanted(StrEnum):
    """What a change must keep."""

    FULL = "full"
    BACKWARD = "backward"
    FORWARD = "forward"


_FILES = {Form.PROTOBUF: "event.proto", Form.AVRO: "event.avsc", Form.JSON: "event.json"}


@app.command()
def show(form: Annotated[Form, typer.Option("--format", help="How events are written.")] = Form.PROTOBUF) -> None:
    """Print the schema of an event: what a producer generates its code from, or registers."""
    with as_file(files("pipelines.contract").joinpath(_FILES[form])) as schema:
        say_file(schema)


@app.command()
def check(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The schema so far: .proto, .avsc or .json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The schema to come, in the same format.")],
    require: Annotated[Wanted, typer.Option(help="What the change must be, at least.")] = Wanted.FULL,
) -> None:
    """Say whether old and new writers and readers understand each other; exits 1 if not as required.

    backward: readers of NEW understand what OLD wrote. forward: readers of OLD understand what NEW writes.
    """
    from pipelines.contract.compatibility.verdict import Compatibility, judge_change  # noqa: PLC0415

    verdict = judge_change(old, new)
    if verdict.breaks:
        rows = [(b.place, b.sentence, _mark(b.backward), _mark(b.forward)) for b in verdict.breaks]
        table(("where", "what", "backward", "forward"), rows)
    say(f"compatibility: {verdict.compatibility}")
    if not verdict.compatibility.covers(Compatibility(require)):
        raise KarmalakeError(f"{new} is not {require} compatible with {old}")


def _mark(broken: bool) -> str:  # noqa: FBT001 - one flag is all it takes
    return "broken" if broken else "ok"
