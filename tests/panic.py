"""A panic, as every Rust extension raises it."""


class Panic(BaseException):
    """Like the PanicException of PyO3: not an Exception, and each extension has a class of its own in this module."""

    __module__ = "pyo3_runtime"
