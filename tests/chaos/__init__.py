"""Chaos runs: crashes and faults for a given time, then a report on every event (`make chaos`).

`run.py` is the loop and `faults.py` the table of faults; `logs.py`, `power.py` and `clock.py` implement the larger
ones. `world.py` holds the services and what was sent, `tasks.py` what child processes run, `report.py` the final
checks.
"""
