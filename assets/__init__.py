"""The Dagster layer: assets, schedules, sensors and checks. All logic is in `pipelines`."""

from pipelines.boundary.extras import require_extra

require_extra("dagster", "the Dagster layer")
