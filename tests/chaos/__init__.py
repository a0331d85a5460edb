"""Crashes and faults for as long as wanted, and an account of what they did to the events: `make chaos`.

`run.py` is the loop, `disturbances.py` the table of what is done to the lake, each in a module of its own: `logs.py`,
`copies.py`, `power.py`, `clock.py`, `store.py`, `history.py`. `world.py` holds the services and what was sent,
`verdict.py` opens the books. `tasks.py` is what children run.
"""
