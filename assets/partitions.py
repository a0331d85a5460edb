"""The daily partitions: UTC, from the first event until today."""

import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import dagster as dg

from pipelines.errors import UsageError


def days_from(first: date) -> dg.DailyPartitionsDefinition:
    """Return the days from a first one until today. An event of a later day waits in the cursor of `updated_days`."""
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone="UTC", end_offset=1)


DAYS = days_from(date(2010, 1, 1))
"""The days of an asset as declared; `build_defs` puts those from the first event on in their place."""


def requested_days(context: dg.AssetExecutionContext, days: dg.DailyPartitionsDefinition) -> dg.PartitionKeyRange:
    """Return the first and the last day of a run. Raises UsageError if one is no partition, or there is none.

    Dagster starts a run for any day that a client of its API names.
    """
    first, last = days.get_first_partition_key() or "", days.get_last_partition_key() or ""
    if not context.has_partition_key_range and not context.has_partition_key:
        raise UsageError(f"the run has no day: launch it for a day, or a range of days, from {first} to {last}")
    asked = context.partition_key_range
    if not first <= asked.start <= asked.end <= last:
        shown = " to ".join(dict.fromkeys([asked.start, asked.end]))
        raise UsageError(
            f"there is no {shown}: the days of this asset are those from {first} to {last}; reload the code location "
            "if an event or a file is of an earlier day"
        )
    return asked


def asset_by_day(
    backfill_policy: dg.BackfillPolicy, **options: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return `dg.asset` for DAYS, without the warning that backfill policies are in beta, which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.asset(partitions_def=DAYS, backfill_policy=backfill_policy, **options)
