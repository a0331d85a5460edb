"""The embedded broker and cache of the demo and the fast tests."""
