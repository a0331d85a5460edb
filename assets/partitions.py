"""The daily partitions: UTC, including today.

They start at the oldest history that is likely to be loaded. An earlier first day only adds a row per day to the user
interface; events before it are still in the lake and in every score.
"""

import dagster as dg

FIRST_DAY = "2010-01-01"

DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY, timezone="UTC", end_offset=1)
