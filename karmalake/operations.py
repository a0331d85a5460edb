"""What the commands of operators call, for notebooks and jobs: backfill, drain, lag, dead letters, support, verify."""

from pipelines.backfill import backfill
from pipelines.bus.topics import ensure_topic
from pipelines.drain import drain, open_ingest
from pipelines.emit.producer import Record, produce_records
from pipelines.lake.commit_log import take_snapshot
from pipelines.lake.tables import open_lake
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.operate.dead_letters import Selection, discard, requeue, select
from pipelines.operate.lag.advice import advise
from pipelines.operate.lag.measure import measure_lag
from pipelines.operate.lag.observe import measure_lags
from pipelines.operate.merge_users import merge_user, preview_merge, preview_rename, rename_user
from pipelines.operate.operator_events import adjust, preview_adjustment, preview_retraction, retract
from pipelines.operate.user_data import user_data
from pipelines.operate.verify import verify, verify_lake
from pipelines.refresh import publish_warehouse, rebuild_warehouse
from pipelines.simulate.simulator import simulate
from pipelines.sources.files import ColumnMapping

__all__ = [
    "ColumnMapping",
    "Record",
    "Selection",
    "adjust",
    "advise",
    "backfill",
    "discard",
    "drain",
    "ensure_topic",
    "measure_lag",
    "measure_lags",
    "merge_user",
    "open_ingest",
    "open_lake",
    "preview_adjustment",
    "preview_merge",
    "preview_rename",
    "preview_retraction",
    "produce_records",
    "publish_warehouse",
    "rebuild_warehouse",
    "rename_user",
    "requeue",
    "retract",
    "select",
    "simulate",
    "start",
    "stop",
    "take_snapshot",
    "user_data",
    "verify",
    "verify_lake",
    "with_local_endpoints",
]
