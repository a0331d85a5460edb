"""karmalake: events from Kafka, each counted once, into a lake; scores derived, explained and served.

The documented names for users are in the package `karmalake`.
"""
