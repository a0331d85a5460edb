"""Dagster and nothing else: what is orchestrated, when, and how it is checked. What is done is done by `pipelines`."""
