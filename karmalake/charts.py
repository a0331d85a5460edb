"""`BLUE`, `GREY`, `INK`, `ORANGE`: the colors of charts, distinct in print and for color-blind readers."""

from pipelines.boundary.extras import extra

with extra("notebooks", "charts in a notebook"):
    from pipelines.reputation.charts import BLUE, GREY, INK, ORANGE

__all__ = ["BLUE", "GREY", "INK", "ORANGE"]
