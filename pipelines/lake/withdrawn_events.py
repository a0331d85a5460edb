"""The events that a withdrawal removed, until a vacuum deletes the files that it replaced.

The log entry of the withdrawal names those files, and its record the batches and topics. What was shown before the
withdrawal is computed with these events. Events of erased users are never among them (`erasable`).
"""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.files import DAY_COLUMN
from pipelines.lake.stores import any_exists
from pipelines.lake.tables import COMMIT_METADATA, EVENTS, Lake, read_rows
from pipelines.lake.user_files import find_files
from pipelines.settings import Settings

WITHDRAWN_EVENTS = pa.schema(
    [*(column for column in EVENTS if column.name != DAY_COLUMN), ("withdrawn_by", pa.int64())]
)
"""The columns of `events` without the day, and the version of the withdrawal."""


def read_withdrawn_events(
    settings: Settings, version: int, user_ids: Collection[str], of_others: Collection[str]
) -> pa.Table:
    """Return the events of some users that the withdrawal of a version of `events` removed, as WITHDRAWN_EVENTS.

    of_others: action_types of which the events of all other users are returned, too.
    Raises FileNotFoundError when a vacuum has deleted the files, LookupError when the log no longer has the entry.
    """
    from pipelines.lake.tombstones import open_tombstones  # noqa: PLC0415 - loads all decoders, seldom needed

    lake = Lake(settings.lake_root)
    ((_, actions),) = lake.read_log(version - 1, version)
    paths = [f"{lake.folder('events')}/{unquote(each['remove']['path'])}" for each in actions if "remove" in each]
    if not all(any_exists([path]) for path in paths):
        raise FileNotFoundError(
            f"a vacuum has deleted files that version {version} of {lake.folder('events')} replaced"
        )
    wanted = paths if of_others else sorted(find_files(paths, user_ids))
    tombstones = open_tombstones(lake, settings)
    found = (_select(read_rows("events", path), user_ids, of_others, _places(actions)) for path in wanted)
    remaining = (rows.filter(pc.invert(tombstones.match_users(rows["user_id"]))) for rows in found)
    named = (rows.append_column("withdrawn_by", pa.repeat(version, len(rows))) for rows in remaining)
    return pa.concat_tables([WITHDRAWN_EVENTS.empty_table(), *named])


def _places(actions: list[dict[str, Any]]) -> pa.Array:
    """Return what a withdrawal removed, as `batch_id topic_id`."""
    record = next(
        each["commitInfo"][COMMIT_METADATA] for each in actions if COMMIT_METADATA in each.get("commitInfo", {})
    )
    removed = json.loads(record)["withdrawn"]
    return pa.array([f"{each['batch_id']} {each['topic_id']}" for each in removed], pa.string())


def _select(rows: pa.Table, user_ids: Collection[str], of_others: Collection[str], places: pa.Array) -> pa.Table:
    named = pc.is_in(rows["user_id"], value_set=pa.array(sorted(user_ids), pa.string()))
    relevant = pc.or_(named, pc.is_in(rows["action_type"], value_set=pa.array(sorted(of_others), pa.string())))
    place = pc.binary_join_element_wise(rows["batch_id"], rows["topic_id"], " ")
    return rows.filter(pc.and_(relevant, pc.is_in(place, value_set=places)))
