"""Policies, score SQL, views, trends and the DuckDB warehouse."""
