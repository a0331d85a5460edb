"""The embedded broker and cache behind the demo and the fast tests."""
