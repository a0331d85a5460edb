"""The event contract: schemas, decoding of bytes to columns, and the reasons for rejection."""
