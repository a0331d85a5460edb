"""The event: its Protobuf schema, decoding bytes to columns, reasons for rejection."""
