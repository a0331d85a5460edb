"""The Dagster layer: assets, schedules, sensors and checks. All logic is in `pipelines`."""
