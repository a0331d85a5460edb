"""Redis: its keys, publishing and reading. `keys.py` lists every key that karmalake keeps there."""
