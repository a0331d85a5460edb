"""Files of history: rows of text from CSV, NDJSON and Parquet (`rows.py`), and rows as events (`files.py`).

`ingest/file.py` makes batches of them, `pipelines/backfill.py` drains those into the lake.
"""
