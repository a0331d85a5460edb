"""Fuzzing: every door for bytes from outside, given bytes that are made to break it.

Run as `python -m tests.fuzz [TARGET ...] --seconds 60`, or by `make fuzz`. A target is one door, a generator of inputs
and an oracle that says what the right outcome is (`target.py`, `targets/`). Inputs run in a forked child with a limit
of memory and a watchdog of time (`worker.py`, `campaign.py`), so that a crash by a signal, a hang and a memory bomb are
findings like any other. docs/fuzzing.md says what to do with one.
"""
