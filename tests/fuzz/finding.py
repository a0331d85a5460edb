"""What a campaign saves: findings, an input and how it fails, identified by a signature; and inputs to start from."""

import gzip
import random
import re
import shlex
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

SEEDS = Path(__file__).with_name("seeds")
_VARIABLE = re.compile(r"0x[0-9a-f]+|'[^'\n]*'|\"[^\"\n]*\"|\d+")
_MAX_PER_KIND = 3
_CORPUS = "corpus"
_MAX_CORPUS = 300
_LIST = re.compile(r"#(?:(?:, |: )#)+")
_OURS = re.compile(r'File "[^"]*/(pipelines/[^"]+)", line \d+ in (\w+)')


@dataclass(frozen=True, slots=True)
class Finding:
    """An input and its effect. Findings with the same signature are the same defect."""

    data: bytes
    kind: str
    """error, wrong, SIGSEGV and the like, hang, memory."""
    signature: str
    text: str
    """The exception, or the stack of the process."""


def shape(text: str) -> str:
    """Return a message without the parts that vary between inputs: numbers and quoted text."""
    return _LIST.sub("#", _VARIABLE.sub("#", text))[:200]


def is_new(signature: str, known: set[str]) -> bool:
    """Return whether a finding is new; at most three of one kind in one place count as new."""
    kind = signature.partition(":")[0]
    return signature not in known and sum(other.partition(":")[0] == kind for other in known) < _MAX_PER_KIND


def place_of(stack: str) -> str:
    """Return the innermost function of `pipelines` in a stack of `faulthandler`."""
    found = _OURS.search(last_stack(stack))
    return f"{found[1]} {found[2]}" if found else "outside of our code"


def last_stack(log: str) -> str:
    """Return the last stack of `faulthandler` in a log."""
    return log.rpartition("most recent call first")[2]


def seeds_of(target: str, folder: Path = SEEDS) -> list[bytes]:
    """Return the seed inputs in the repository, by name: earlier findings, and inputs from issues.

    Files with the suffix .packed are compressed with gzip.
    """
    return [_seed(path) for path in sorted((folder / target).glob("*"))]


def corpus_of(target: str, folder: Path, rng: random.Random) -> list[bytes]:
    """Return inputs by which earlier campaigns with the same folder reached new lines: a random 300 of them."""
    paths = sorted((folder / target / _CORPUS).glob("*"))
    return [path.read_bytes() for path in rng.sample(paths, min(len(paths), _MAX_CORPUS))]


def save_to_corpus(data: bytes, target: str, folder: Path) -> None:
    """Save an input that reached new lines, for the next campaign with the same folder."""
    path = folder / target / _CORPUS / blake2b(data, digest_size=10).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _seed(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".packed" else data


def save(finding: Finding, target: str, folder: Path) -> Path:
    """Save the input, and beside it its effect and the command that reproduces it; return the path of the input."""
    name = f"{finding.kind}-{blake2b(finding.signature.encode(), digest_size=5).hexdigest()}"
    path = folder / target / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    command = f"python -m tests.fuzz {target} --replay {shlex.quote(str(path))}"
    path.with_suffix(".txt").write_text(f"{command}\n\n{finding.signature}\n\n{finding.text}\n", encoding="utf-8")
    return path
