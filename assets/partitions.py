"""The days: UTC, today included.

They begin where the oldest history that is likely to be loaded begins. An earlier first day costs a row in the user
interface for every day and nothing else; events before it are in the lake and in every score all the same.
"""

import dagster as dg

FIRST_DAY = "2010-01-01"

DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY, timezone="UTC", end_offset=1)
