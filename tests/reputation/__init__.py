"""Tests of policies, scores, views and the warehouse."""
