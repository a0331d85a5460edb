"""The jars of Apache Kafka: fetched with Maven once, kept in a cache outside the repository.

The cache is `$XDG_CACHE_HOME/karmalake-tests/kafka-<version>-<digest of pom.xml>`. Beside the jars lies a class
archive of the Java that runs them (Java's AppCDS): with it a broker starts in half the time.
"""

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_HERE = Path(__file__).parent
_POM = _HERE / "pom.xml"
_DOWNLOAD_SECONDS = 240.0
_JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Jars, and what Java is told about sharing classes between runs."""

    jars: Path
    sharing: tuple[str, ...] = ()

    def command(self, main_class: str, *arguments: str) -> list[str]:
        """Return the command that runs a class of Kafka."""
        # Java accepts a class archive only for the very class path it was made with, spelt out.
        class_path = os.pathsep.join(str(jar) for jar in sorted(self.jars.glob("*.jar")))
        logging = f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}"
        return ["java", *_JVM_OPTIONS, *self.sharing, logging, "-cp", class_path, main_class, *arguments]

    def using(self, archive: Path) -> Self:
        """Return the distribution that starts from a class archive; Java ignores one that does not fit."""
        return dataclasses.replace(self, sharing=(f"-XX:SharedArchiveFile={archive}",))

    def writing(self, archive: Path) -> Self:
        """Return the distribution whose processes write a class archive when they end."""
        return dataclasses.replace(self, sharing=(f"-XX:ArchiveClassesAtExit={archive}",))

    def archive(self) -> Path:
        """Return where the class archive for the installed Java is or will be."""
        java = hashlib.sha256(java_version().encode()).hexdigest()[:8]
        return self.jars.with_name(f"{self.jars.name}-{java}.jsa")


def distribution_folder() -> Path:
    """Return where the jars are or will be."""
    pom = _POM.read_bytes()
    version = re.search(rb"<kafka.version>([^<]+)<", pom)
    assert version is not None, f"{_POM} names no kafka.version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "karmalake-tests" / f"kafka-{version[1].decode()}-{hashlib.sha256(pom).hexdigest()[:8]}"


def distribution() -> Distribution:
    """Return the distribution, fetching the jars if they are not there.

    Several test processes may do so at once: a finished download appears under its name in one step.
    """
    folder = distribution_folder()
    if not folder.exists():
        _download(folder)
    return Distribution(folder)


@functools.cache
def java_version() -> str:
    """Return what `java -version` prints."""
    return subprocess.run(["java", "-version"], check=True, capture_output=True, text=True, timeout=60).stderr


def _download(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        jars = Path(temporary) / "jars"
        quiet = ("--quiet", "--batch-mode", "--strict-checksums", "-Dstyle.color=never")
        goal = ("dependency:copy-dependencies", f"-DoutputDirectory={jars}")
        subprocess.run(["mvn", *quiet, "-f", str(_POM), *goal], check=True, timeout=_DOWNLOAD_SECONDS)
        try:
            jars.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(jars)  # somebody else was first
