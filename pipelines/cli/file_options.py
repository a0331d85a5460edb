"""The options of commands that read files: what the columns are, and how a file is written."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.sources.files import ColumnMapping

TimeUnit = Literal["s", "ms", "us", "ns", "iso", "rfc2822"]
Format = Literal["csv", "json", "parquet", "arrow", "orc", "avro", "xlsx"]
_ROWS, _FILES = "What a row is", "How the file is written (found in it by default)"


def _option(text: str, metavar: str | None = None, panel: str = _ROWS) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel=panel)


def column_mapping(  # noqa: PLR0913, PLR0917 - options of the command line
    time: Annotated[str | None, _option("The column of the event time.", "COL")] = None,
    user_id: Annotated[str | None, _option("The column of the user whose reputation the event affects.", "COL")] = None,
    user: Annotated[str | None, _option("The user of every row, instead of --user-id.", "NAME")] = None,
    time_unit: Annotated[
        TimeUnit, _option("The form of the time column: s, ms, us or ns since 1970, ISO 8601, or as in mail.")
    ] = "iso",
    time_format: Annotated[
        str | None, _option("The format of the time column in the names of strptime: '%d.%m.%Y %H:%M'.", "FORMAT")
    ] = None,
    time_zone: Annotated[
        str | None, _option("The zone of times that name none, such as Europe/Berlin; UTC by default.", "ZONE")
    ] = None,
    action_type: Annotated[str | None, _option("The action_type of every row.", "NAME")] = None,
    action_type_column: Annotated[
        str | None, _option("The column of the action_type, instead of --action-type.", "COL")
    ] = None,
    metadata: Annotated[list[str] | None, _option("A metadata entry and its column. Repeatable.", "NAME=COL")] = None,
    event_id: Annotated[
        str | None, _option("The column of the event_id; a digest of the row by default.", "COL")
    ] = None,
    identity: Annotated[
        str | None, _option("The columns whose digest is the event_id, instead of the whole row.", "COL,...")
    ] = None,
    number_rows: Annotated[  # noqa: FBT002 - an option of the command line
        bool, typer.Option("--number-rows", help="Equal rows are separate events.", rich_help_panel=_ROWS)
    ] = False,
    null: Annotated[
        list[str] | None, _option("A text that stands for no value, such as NULL. Repeatable.", "TEXT")
    ] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="The format of the file.", rich_help_panel=_FILES)
    ] = None,
    delimiter: Annotated[str | None, _option("CSV: the delimiter, such as ';' or tab.", "CHAR", _FILES)] = None,
    quote: Annotated[str | None, _option("CSV: encloses values; '' if nothing does.", "CHAR", _FILES)] = None,
    escape: Annotated[
        str | None, _option("CSV: precedes a quote within a value, where quotes are not doubled.", "CHAR", _FILES)
    ] = None,
    comment: Annotated[str | None, _option("CSV: begins lines that are not rows.", "CHAR", _FILES)] = None,
    columns: Annotated[
        str | None, _option("CSV: the names of the columns, if no line names them.", "COL,...", _FILES)
    ] = None,
    decimal_comma: Annotated[
        bool | None, typer.Option(help="CSV: whether 4,5 is the number 4.5.", rich_help_panel=_FILES)
    ] = None,
    encoding: Annotated[str | None, _option("Of text, such as cp1252.", "NAME", _FILES)] = None,
) -> "ColumnMapping":
    """Return the mapping that the options describe. Raises UsageError for options that contradict each other."""
    from pipelines.sources.files import ColumnMapping  # noqa: PLC0415
    from pipelines.sources.options import ReadOptions  # noqa: PLC0415

    if user_id is None and user is None:
        raise UsageError("give --user-id, the column of the user, or --user, one user for all rows")
    if time is None:
        raise UsageError("give --time, the column of the event time")
    separator = "\t" if delimiter == "tab" else delimiter
    names, empty = _names(columns), tuple(null or ())
    reading = ReadOptions(format_, separator, quote, escape, comment, encoding, names, decimal_comma, empty)
    return ColumnMapping(
        user_id,
        time,
        time_unit,
        action_type,
        action_type_column,
        tuple(_pair(entry) for entry in metadata or []),
        event_id,
        reading,
        user,
        time_format,
        time_zone,
        _names(identity),
        number_rows,
    )


def takes_mapping(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter `mapping` the options that describe one; it is None for one with a `source`."""
    options = signature(column_mapping, eval_str=False).parameters
    own = [each for name, each in signature(command).parameters.items() if name != "mapping"]

    @wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in options}
        mapping = _no_mapping(given) if values.get("source") else column_mapping(**given)
        command(mapping=mapping, **values)

    parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own, *options.values())]
    run.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__  # type: ignore[attr-defined] - its signature is not the one of the command
    return run


def _no_mapping(given: dict[str, Any]) -> None:
    """Raise UsageError for an option beside --source."""
    for name, value in given.items():
        if value != signature(column_mapping).parameters[name].default:
            option = name.strip("_").replace("_", "-")
            raise UsageError(f"--{option} and --source exclude each other: the source says what the rows are")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _pair(entry: str) -> tuple[str, str]:
    name, equals, column = entry.partition("=")
    if not equals or not name or not column:
        raise UsageError(f"--metadata {entry!r} is not NAME=COL")
    return name, column
