"""Fuzzing: every entry point for bytes from outside, with inputs that are made to break it.

Run as `python -m tests.fuzz [TARGET ...] --seconds 60`, or by `make fuzz`. A target is an entry point, a generator of
inputs and an oracle that states the right outcome (`target.py`, `targets/`). Inputs run in a forked child with a memory
limit and a time limit (`worker.py`, `campaign.py`), so that a crash by a signal, a hang and a memory bomb are findings,
too. docs/fuzzing.md says what to do with a finding.
"""
