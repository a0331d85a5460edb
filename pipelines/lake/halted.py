"""Topic partitions that are halted, kept for those who look from another process (`karmalake doctor`).

A hint: whether one is halted still, its checkpoint in the lake says.
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from deltalake import DeltaTable

from pipelines.ingest.guard import Halted
from pipelines.lake.tables import checkpoint_id
from pipelines.settings import Settings

_LOG = logging.getLogger(__name__)


def remember(settings: Settings, halted: Iterable[Halted]) -> None:
    """Write down what this process has halted; a disk that does not take it is only logged."""
    file = _file(settings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps([asdict(place) for place in halted]), encoding="utf-8")
        new.replace(file)
    except OSError as error:
        _LOG.warning("%s cannot be written: %s", file, error)


def recall(settings: Settings) -> list[Halted]:
    """Return the topic partitions that were halted and whose checkpoint has not moved since."""
    try:
        places = [Halted(**place) for place in json.loads(_file(settings).read_text(encoding="utf-8"))]
        events = DeltaTable(f"{settings.lake_root}/events") if places else None
    except (OSError, ValueError, TypeError):
        return []
    if events is None:
        return []
    at = {place: events.transaction_version(checkpoint_id(place.topic_id, place.topic_partition)) for place in places}
    return [place for place in places if at[place] in {place.next_offset, None}]


def _file(settings: Settings) -> Path:
    return settings.data_dir / "halted.json"
