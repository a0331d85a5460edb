"""Manifests of caches: JSON with its own digest, so that a changed bit leads to a rebuild and not to other contents."""

import json
import zlib
from pathlib import Path
from typing import Any

_DIGEST = "digest"


def manifest_text(contents: dict[str, Any]) -> str:
    """Return the text of a manifest."""
    return json.dumps({**contents, _DIGEST: _digest(contents)})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the contents of a manifest. Raises OSError or ValueError if they are not as written."""
    contents: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(contents, dict) or contents.pop(_DIGEST, None) != _digest(contents):
        raise ValueError(f"{path} is damaged")
    return contents


def _digest(contents: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(contents).encode())
