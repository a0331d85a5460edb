"""The serving store: publishing and reading.

`keys.py` lists every Redis key that karmalake writes, `publication.py` the order in which they change. `publish.py`
decides which documents change, `redis_store.py` in which chunks.
"""
