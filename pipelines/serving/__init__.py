"""The serving store: Redis keys, publishing and reading. `keys.py` lists every key that karmalake writes."""
