"""Compatibility of schema changes between old and new writers and readers."""
