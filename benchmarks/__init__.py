"""Measurements, each a module with a `run(folder)`: `python -m benchmarks refresh`. Never part of the tests."""
