"""The daily partitions: UTC, from the first event until today."""

import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import dagster as dg


def days_from(first: date) -> dg.DailyPartitionsDefinition:
    """Return the days from a first one until today. An event of a later day waits in the cursor of `updated_days`."""
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone="UTC", end_offset=1)


DAYS = days_from(date(2010, 1, 1))
"""The days of an asset as declared; `build_defs` puts those from the first event on in their place."""


def asset_by_day(
    backfill_policy: dg.BackfillPolicy, **options: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return `dg.asset` for DAYS, without the warning that backfill policies are in beta, which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.asset(partitions_def=DAYS, backfill_policy=backfill_policy, **options)
