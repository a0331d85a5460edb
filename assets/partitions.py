"""The daily partitions: UTC, from the first event until today."""

from datetime import date

import dagster as dg


def days_from(first: date) -> dg.DailyPartitionsDefinition:
    """Return the days from a first one until today. An event of a later day waits in the cursor of `updated_days`."""
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone="UTC", end_offset=1)


DAYS = days_from(date(2010, 1, 1))
"""The days of an asset as declared; `build_defs` puts those from the first event on in their place."""
