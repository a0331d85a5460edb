"""The targets by name, with the module of each; a module is imported when its target runs."""

import importlib

from tests.fuzz.target import Target

_MODULES = {
    "protobuf": "protobuf",
    "avro": "avro",
    "json": "json_values",
    "batches": "batches",
    "headers": "batches",
    "csv": "history",
    "ndjson": "history",
    "parquet": "history",
    "arrow": "history",
    "orc": "history",
    "container": "history",
    "workbook": "history",
    "policy": "toml_files",
    "rules": "toml_files",
    "source-files": "toml_files",
    "settings": "toml_files",
    "registry": "registry",
    "webhook": "webhook",
    "changes": "changes",
    "redis": "redis_server",
    "sqs": "queues",
    "rabbitmq": "queues",
    "places": "places",
    "sources": "sources",
}
NAMES = tuple(_MODULES)


def load(name: str) -> Target:
    """Return a target; a name with a colon is `module:attribute`, for the tests of the harness."""
    module, _, attribute = name.partition(":")
    if attribute:
        return getattr(importlib.import_module(module), attribute)
    return importlib.import_module(f"tests.fuzz.targets.{_MODULES[name]}").TARGETS[name]
