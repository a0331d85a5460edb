"""The history of lag: every measurement of `stream` and of `karmalake lag`, kept for some days.

Owns `lag/YYYY-MM-DD.jsonl` in the data folder, a file a UTC day and a measurement a line, written by several processes.
It is an observation, not the truth: nothing depends on it. A crash leaves at most a line that was cut off; readers
pass over it, and over the one that follows in the same line.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipelines.boundary.private_files import private_folder
from pipelines.errors import TransientError
from pipelines.operate.lag.measure import Measurement

_LINES: TypeAdapter[Measurement] = TypeAdapter(Measurement)
_SUFFIX = ".jsonl"
_TAIL_BYTES = 256 * 1024
"""Read at most of a day: an hour of measurements of a topic with a few partitions."""


def keep(folder: Path, measurement: Measurement, keep_days: int) -> None:
    """Append a measurement, and delete what is older than `keep_days` days.

    Raises TransientError where it cannot be written: this measurement is lost to the history, and no other.
    """
    path = _path(folder, measurement.measured_at.date())
    try:
        private_folder(folder)
        is_new = not path.exists()
        with path.open("ab", buffering=0) as file:  # one write a line: other processes append to it as well
            file.write(_LINES.dump_json(measurement) + b"\n")
        if is_new:
            _forget(folder, measurement.measured_at.date() - timedelta(days=keep_days))
    except OSError as error:
        raise TransientError(f"the history of lag at {path} cannot be written: {error}; check the disk") from error


def recent(folder: Path, topic_id: str, since: datetime) -> list[Measurement]:
    """Return the last measurements of a topic, none from before `since`, the oldest first.

    Only the end of a day's file is read, so of many topic partitions it may be less than since then.
    """
    days = (datetime.now(UTC).date() - since.astimezone(UTC).date()).days
    paths = [_path(folder, since.astimezone(UTC).date() + timedelta(days=number)) for number in range(days + 1)]
    found = [measurement for path in paths if path.exists() for measurement in _read(path)]
    mine = [one for one in found if one.topic_id == topic_id and one.measured_at >= since]
    return sorted(mine, key=lambda measurement: measurement.measured_at)


def _read(path: Path) -> list[Measurement]:
    measurements: list[Measurement] = []
    for line in _tail(path).splitlines():
        try:
            measurements.append(_LINES.validate_json(line))
        except ValidationError:
            continue  # cut off by a crash, by where the tail begins, or of another release
    return measurements


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def _path(folder: Path, day: date) -> Path:
    return folder / f"{day.isoformat()}{_SUFFIX}"


def _forget(folder: Path, before: date) -> None:
    for path in folder.glob(f"????-??-??{_SUFFIX}"):
        if path.stem < before.isoformat():
            path.unlink(missing_ok=True)
