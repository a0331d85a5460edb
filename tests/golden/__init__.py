"""Golden data folders: one of each release, made by `python -m tests.golden` and opened by the tests of later ones."""
