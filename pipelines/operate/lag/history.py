"""The history of lag: every measurement of `stream` and of `karmalake lag`, retained for `lag.keep_days` days.

Owns `lag/YYYY-MM-DD.jsonl` in the data folder: one file per UTC day, one measurement per line, several writers. No
correctness depends on it. A crash leaves at most one truncated line; readers skip it, and a measurement that was
appended to the same line.
"""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from pipelines.boundary.private_files import make_inner_dir
from pipelines.errors import TransientError
from pipelines.formats import LAG
from pipelines.operate.lag.measure import Measurement

_MEASUREMENT: TypeAdapter[Measurement] = TypeAdapter(Measurement)
_SUFFIX = ".jsonl"
_MAX_TAIL_BYTES = 256 * 1024
"""Bytes read from the end of a day's file: about an hour of measurements of a topic with a few partitions."""


def append(folder: Path, measurement: Measurement, keep_days: int) -> None:
    """Append a measurement, and delete files older than `keep_days` days.

    Raises TransientError if it cannot be written; only this measurement is missing from the history then.
    """
    path = _path(folder, measurement.measured_at.date())
    try:
        make_inner_dir(folder)
        is_new = not path.exists()
        with path.open("ab", buffering=0) as file:  # one write per line: other processes append to it, too
            file.write(_to_line(measurement))
        if is_new:
            _delete_before(folder, measurement.measured_at.date() - timedelta(days=keep_days))
    except OSError as error:
        raise TransientError(
            f"the history of lag at {path} cannot be written: {error}; check free space and permissions"
        ) from error


def recent(folder: Path, topic_id: str, since: datetime) -> list[Measurement]:
    """Return the measurements of a topic since `since`, the oldest first.

    Reads only the end of each file, so with many topic partitions the oldest may be missing.
    """
    days = (datetime.now(UTC).date() - since.astimezone(UTC).date()).days
    paths = [_path(folder, since.astimezone(UTC).date() + timedelta(days=number)) for number in range(days + 1)]
    found = [measurement for path in paths if path.exists() for measurement in _read(path)]
    of_topic = [each for each in found if each.topic_id == topic_id and each.measured_at >= since]
    return sorted(of_topic, key=lambda measurement: measurement.measured_at)


def _to_line(measurement: Measurement) -> bytes:
    fields = {"format": LAG.number} | _MEASUREMENT.dump_python(measurement, mode="json")
    return json.dumps(fields).encode() + b"\n"


def _read(path: Path) -> list[Measurement]:
    measurements: list[Measurement] = []
    for line in _tail(path).splitlines():
        try:
            fields = json.loads(line)
            if fields["format"] == LAG.number:
                measurements.append(_MEASUREMENT.validate_python(fields))
        except (ValueError, KeyError, TypeError):
            continue  # truncated by a crash or by the start of the tail, or of a release without numbers
    return measurements


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MAX_TAIL_BYTES))
        return file.read()


def _path(folder: Path, day: date) -> Path:
    return folder / f"{day.isoformat()}{_SUFFIX}"


def _delete_before(folder: Path, before: date) -> None:
    for path in folder.glob(f"????-??-??{_SUFFIX}"):
        if path.stem < before.isoformat():
            path.unlink(missing_ok=True)
