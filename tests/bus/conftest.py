"""The tests of this folder run on every broker."""

from tests.services.brokers import bus

__all__ = ["bus"]
