"""The topic partitions that ingest has halted, saved for other processes to read (`karmalake doctor`).

The file is a hint: whether a topic partition is still halted follows from its checkpoint in the lake.
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pipelines.boundary.private_files import make_private_dir
from pipelines.formats import HALTED
from pipelines.ingest.guard import HaltedPartition
from pipelines.lake.checkpoints import checkpoint
from pipelines.lake.tables import is_lake, open_lake
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)


def save_halted(settings: Settings, halted: Iterable[HaltedPartition]) -> None:
    """Save which topic partitions this process has halted; a failure to write is logged."""
    file = _file(settings)
    try:
        make_private_dir(file.parent)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(
            json.dumps({"format": HALTED.number, "halted": [asdict(place) for place in halted]}), encoding="utf-8"
        )
        new.replace(file)
    except OSError as error:
        _LOG.warning("%s cannot be written: %s", file, error)


def load_halted(settings: Settings) -> list[HaltedPartition]:
    """Return the saved topic partitions whose checkpoint has not moved since; none if the file cannot be read.

    One of another format counts as such. Raises like `Lake.table`.
    """
    try:
        saved = json.loads(_file(settings).read_text(encoding="utf-8"))
        places = [HaltedPartition(**place) for place in saved["halted"] if saved["format"] == HALTED.number]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    if not places or not is_lake(settings.lake_root):
        return []
    events = open_lake(settings.lake_root).table("events")
    at = {place: checkpoint(events, place.topic_id, place.topic_partition) for place in places}
    return [place for place in places if at[place] in {place.next_offset, None}]


def _file(settings: Settings) -> Path:
    return settings.data_dir / "halted.json"
