"""Kills during compaction and vacuum, a requeue of dead letters, an erasure, and the withdrawal of a load."""

import polars as pl

from pipelines.backfill import backfill
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.dead_letters import Selection, requeue
from pipelines.operate.erase import erase
from pipelines.operate.loads import list_loads, withdraw_loads
from pipelines.operate.verify import verify_index
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.crashes.flows import Flow, killed, parts
from tests.crashes.kills import Moment
from tests.draining import answers, drain_all

_ANY_SIZE = {"max_event_id_bytes": 2**20, "max_user_id_bytes": 2**20, "max_action_type_bytes": 2**20}
_COMPACTING = {
    "pipelines.lake.upkeep:read_rows": 1,
    "pipelines.lake.upkeep:write_rows": 3,
    "pipelines.lake.files:_write": 2,
    "pipelines.lake.upkeep:replace_files": 2,
    "pipelines.lake.upkeep:commit_actions": 2,
    "pipelines.lake.upkeep:make_durable": 2,
    "pipelines.lake.upkeep:_merge_files": 2,
}
_VACUUMING = {"pipelines.lake.upkeep:name_replaced_files": 2, "deltalake:DeltaTable.vacuum": 2}


def upkeep(settings: Settings) -> None:
    """Merge small files and remove unreferenced ones, as `karmalake compact` and `karmalake vacuum` do."""
    lake = open_lake(settings.lake_root)
    compact(lake, 2)
    vacuum(lake, 0)
    drain_all(settings)


def requeue_all(settings: Settings) -> None:
    """Requeue under a contract with larger limits, as `karmalake dead-letters requeue` does."""
    relaxed = settings.contract.model_copy(update=_ANY_SIZE)
    requeue(settings.model_copy(update={"contract": relaxed}), Selection())


def erase_a_user(settings: Settings) -> None:
    """Erase the user of the first event, as `karmalake erase` does."""
    key = next(parts())[0].key
    assert key is not None
    erase(settings, [key.decode()])


def _requeued(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    """Return what a requeue changes, without its id."""
    return answers(
        settings,
        {
            "events": "SELECT * EXCLUDE (batch_id, topic_id, bus_time) FROM events ORDER BY event_id",
            "dead_letters": 'SELECT "offset", reason, fate FROM dead_letters ORDER BY "offset"',
            "totals": 'SELECT sum("read"), sum(accepted), sum(duplicates), sum(conflicts) FROM commits',
        },
    )


def load_wrongly(settings: Settings) -> None:
    """Drain, load rows under a wrong mapping, and merge the files, so that the load shares them with other events."""
    drain_all(settings)
    _load(settings, "giver")
    compact(open_lake(settings.lake_root), 2)


def withdraw_and_load_again(settings: Settings) -> None:
    """Withdraw the wrong load and load the rows again, as `karmalake loads withdraw` and `karmalake backfill` do."""
    withdraw_loads(settings, [list_loads(settings)[0]["load"]], "wrong user")
    _load(settings, "taker")


def _load(settings: Settings, user_id: str) -> None:
    days = ["2026-02-27", "2026-02-28", "never"]
    rows = pl.DataFrame(
        [{"id": f"{day} {n}", "giver": "g", "taker": f"t{n}", "t": day} for day in days for n in range(9)]
    )
    lenient = settings.ingest.model_copy(update={"max_dead_letter_share": 1.0, "max_batch_records": 100})
    mapping = ColumnMapping(user_id, "t", "iso", "UserRated", None, (), "id")
    backfill(settings.model_copy(update={"ingest": lenient}), pl.DataFrame(rows), mapping)


def _withdrawn(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    """Return what a withdrawal and a load change, without batches and times."""
    seen = answers(
        settings,
        {
            "events": "SELECT * EXCLUDE (batch_id, topic_id, bus_time) FROM events ORDER BY event_id",
            "dead_letters": 'SELECT topic, "offset", reason, fate, note FROM dead_letters ORDER BY ALL',
            "commits": "SELECT source, accepted, note, len(withdrawn), days FROM commits ORDER BY version",
            "checkpoints": "SELECT next_offset FROM checkpoints ORDER BY ALL",
        },
    )
    return seen | {"index": [(verify_index(settings).passed,)]}


_WITHDRAWING = {
    "pipelines.lake.withdrawal:find_files": 1,
    "pipelines.lake.removal:read_rows": 1,
    "pipelines.lake.removal:write_rows": 1,
    "pipelines.lake.files:_write": 2,
    "pipelines.lake.removal:write_erased_events": 1,
    "pipelines.lake.removal:replace_files": 1,
    "pipelines.lake.removal:make_durable": 1,
    "pipelines.lake.withdrawal:commit_removal": 1,
    "pipelines.lake.withdrawal:complete_commits": 2,
    "pipelines.operate.loads:forget_erased": 1,
    "pipelines.lake.index:DedupIndex.forget_erased": 1,
    "pipelines.lake.runs:Runs.remove": 1,
    "pipelines.operate.loads:close_withdrawn": 1,
    "pipelines.operate.dead_letters:_record_fate": 1,
}
_ERASING = {
    "pipelines.lake.tombstones:append_file": 1,
    "pipelines.lake.tombstones:append_tombstones": 1,
    "pipelines.lake.erasure:find_files": 1,
    "pipelines.lake.erasure:append_file": 1,
    "pipelines.lake.removal:read_rows": 2,
    "pipelines.lake.removal:write_rows": 2,
    "pipelines.lake.files:_write": 2,
    "pipelines.lake.removal:write_erased_events": 1,
    "pipelines.lake.removal:replace_files": 1,
    "pipelines.lake.removal:make_durable": 1,
    "pipelines.lake.erasure:_erase": 2,
    "pipelines.lake.index:DedupIndex.forget_erased": 1,
    "pipelines.lake.runs:Runs.remove": 1,
    "pipelines.lake.runs:Runs.flush": 1,
    "pipelines.lake.runs:Runs.remove_replaced_files": 1,
    "pipelines.operate.erase:forget_erased": 1,
    "pipelines.operate.erase:delete_histories": 1,
}

FLOWS = {
    "withdrawal": Flow(withdraw_and_load_again, _WITHDRAWING, load_wrongly, seen=_withdrawn),
    "erasure": Flow(erase_a_user, _ERASING, drain_all),
    "compaction and vacuum": Flow(upkeep, _COMPACTING | _VACUUMING, drain_all),
    "recovery from a compaction that was not committed": Flow(
        upkeep,
        {
            "pipelines.lake.upkeep:_merge_files": 2,
            "pipelines.lake.upkeep:commit_actions": 2,
            "deltalake:DeltaTable.vacuum": 2,
        },
        killed(Moment("pipelines.lake.upkeep:commit_actions", "before", 1), upkeep, drain_all),
    ),
    "requeue": Flow(
        requeue_all,
        {
            "pipelines.operate.dead_letters:stream_dead_letters": 1,
            "pipelines.operate.dead_letters:_in_bus_order": 1,
            "pipelines.operate.dead_letters:_record_fate": 1,
            "pipelines.operate.dead_letters:append_file": 1,
            "pipelines.operate.dead_letters:open_ingest_from": 1,
            "pipelines.ingest.requeue:DeadLetterSource.poll": 2,
            "pipelines.drain:stage_events": 1,
            "pipelines.drain:commit_batch": 1,
            "pipelines.drain:DedupIndex.extend": 1,
            "pipelines.drain:complete_commits": 2,
        },
        drain_all,
        seen=_requeued,
    ),
}
