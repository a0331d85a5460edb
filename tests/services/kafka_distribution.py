"""The jars of Apache Kafka, and the JVM options that start it fast.

A class archive (AppCDS) beside the jars halves the start-up time of a broker.
"""

import dataclasses
import functools
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.services.jars import class_path, jars
from tests.services.waiting import PATIENCE_SECONDS

_HERE = Path(__file__).parent
_JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


@dataclass(frozen=True, slots=True)
class Distribution:
    """The jars, and the JVM options for class data sharing."""

    jars: Path
    sharing: tuple[str, ...] = ()

    def command(self, main_class: str, *arguments: str) -> list[str]:
        """Return the command that runs a class of Kafka."""
        logging = f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}"
        return ["java", *_JVM_OPTIONS, *self.sharing, logging, "-cp", class_path(self.jars), main_class, *arguments]

    def using(self, archive: Path) -> Self:
        """Return the distribution that starts from a class archive; Java ignores one that does not fit."""
        return dataclasses.replace(self, sharing=(f"-XX:SharedArchiveFile={archive}",))

    def writing(self, archive: Path) -> Self:
        """Return the distribution whose processes write a class archive when they end."""
        return dataclasses.replace(self, sharing=(f"-XX:ArchiveClassesAtExit={archive}",))

    def archive(self) -> Path:
        """Return the path of the class archive for the installed Java."""
        java = hashlib.sha256("".join(java_version().splitlines()[:2]).encode()).hexdigest()[:8]
        return self.jars.with_name(f"{self.jars.name}-{java}.jsa")


def distribution() -> Distribution:
    """Return the distribution; downloads missing jars."""
    return Distribution(jars("kafka"))


def share_base_classes() -> None:
    """Write the class archive of Java itself, on which others build, where a Java came without one."""
    if "sharing" not in java_version():
        subprocess.run(["java", "-Xshare:dump"], check=False, capture_output=True, timeout=PATIENCE_SECONDS)


@functools.cache
def java_version() -> str:
    """Return what `java -version` prints."""
    return subprocess.run(
        ["java", "-version"], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    ).stderr
