"""`BLUE`, `GREY`, `INK`, `ORANGE`: the colors of charts, distinct in print and for color-blind readers.

`UTC`: the scale of times, as in `alt.X("event_time:T", scale=UTC)`; without it they are in the machine's time zone.
"""

from pipelines.boundary.extras import extra

with extra("notebooks", "charts in a notebook"):
    from pipelines.reputation.charts import BLUE, GREY, INK, ORANGE, UTC

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "UTC"]
