"""The commands of the event contract: show, check."""

from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import print_file, print_line, print_table
from pipelines.errors import KarmalakeError

app = typer.Typer(
    no_args_is_help=True, help="Print the schemas of the contract, or check whether a change of a schema is compatible."
)


class Form(StrEnum):
    """The formats of the contract."""

    PROTOBUF = "protobuf"
    AVRO = "avro"
    JSON = "json"


class RequiredCompatibility(StrEnum):
    """The compatibility that a change must have."""

    FULL = "full"
    BACKWARD = "backward"
    FORWARD = "forward"


class Subject(StrEnum):
    """The values that have a schema."""

    EVENT = "event"
    SCORE_CHANGE = "score-change"


_NAMES = {Subject.EVENT: "event", Subject.SCORE_CHANGE: "score_change"}
_SUFFIXES = {Form.PROTOBUF: "proto", Form.AVRO: "avsc", Form.JSON: "json"}


@app.command()
def show(
    subject: Annotated[Subject, typer.Argument(help="An event, or a change of the feed on its topic.")] = Subject.EVENT,
    form: Annotated[Form, typer.Option("--format", help="The schema language.")] = Form.PROTOBUF,
) -> None:
    """Print the schema of an event or of a change of the feed, for code generation or a schema registry."""
    with as_file(files("pipelines.contract").joinpath(f"{_NAMES[subject]}.{_SUFFIXES[form]}")) as schema:
        print_file(schema)


@app.command()
def check(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The current schema: .proto, .avsc or .json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The new schema, in the same format.")],
    require: Annotated[
        RequiredCompatibility, typer.Option(help="The required compatibility.")
    ] = RequiredCompatibility.FULL,
) -> None:
    """Check whether two versions of a schema are compatible. Exits 1 if they are less compatible than required.

    backward: readers of NEW understand what OLD wrote. forward: readers of OLD understand what NEW writes.
    """
    from pipelines.contract.compatibility.compare import Compatibility, compare_schemas  # noqa: PLC0415

    verdict = compare_schemas(old, new)
    if verdict.breaks:
        rows = [(b.place, b.sentence, _mark(b.backward), _mark(b.forward)) for b in verdict.breaks]
        print_table(("location", "change", "backward", "forward"), rows)
    print_line(f"compatibility: {verdict.compatibility}")
    if not verdict.compatibility.covers(Compatibility(require)):
        raise KarmalakeError(f"{new} is not {require} compatible with {old}")


def _mark(broken: bool) -> str:  # noqa: FBT001 - a single flag
    return "broken" if broken else "ok"
