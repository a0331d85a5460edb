"""What a source is, and how the records of a foreign topic become events.

Imports nothing: the worker process starts often, and needs few of the modules.
"""
