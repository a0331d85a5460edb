"""Tests of the sources of batches."""
