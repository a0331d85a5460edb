"""Golden data folders: one per release, made by `python -m tests.golden` and opened by the tests of later releases."""
