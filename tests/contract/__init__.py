"""Tests of the contract: what is an event, and what is not."""
