"""What was found: an input with the way in which it fails; known by a signature, kept as a file."""

import gzip
import re
import shlex
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

SEEDS = Path(__file__).with_name("seeds")
_VARIABLE = re.compile(r"0x[0-9a-f]+|'[^'\n]*'|\"[^\"\n]*\"|\d+")
_MOST_OF_A_KIND = 3
_LIST = re.compile(r"#(?:(?:, |: )#)+")
_OURS = re.compile(r'File "[^"]*/(pipelines/[^"]+)", line \d+ in (\w+)')


@dataclass(frozen=True, slots=True)
class Finding:
    """One input and what it does. Two findings of one signature are one fault."""

    data: bytes
    kind: str
    """error, wrong, SIGSEGV and the like, hang, memory."""
    signature: str
    text: str
    """For the reader: what was raised, or where the process was."""


def shape(text: str) -> str:
    """Return a sentence without what differs from input to input: numbers and what is quoted."""
    return _LIST.sub("#", _VARIABLE.sub("#", text))[:200]


def is_new(signature: str, known: set[str]) -> bool:
    """Return whether a finding is a new one; of one kind of error in one place, three are enough."""
    kind = signature.partition(":")[0]
    return signature not in known and sum(other.partition(":")[0] == kind for other in known) < _MOST_OF_A_KIND


def place_of(stack: str) -> str:
    """Return the innermost function of ours in a stack that `faulthandler` wrote."""
    found = _OURS.search(last_stack(stack))
    return f"{found[1]} {found[2]}" if found else "outside of our code"


def last_stack(words: str) -> str:
    """Return the last of the stacks that `faulthandler` wrote."""
    return words.rpartition("most recent call first")[2]


def seeds_of(target: str, folder: Path = SEEDS) -> list[bytes]:
    """Return the inputs that are kept in the repository, by name: what was found once, and what issues tell of.

    Those that end in .packed are gzip: large ones that repeat a few bytes.
    """
    return [_seed(path) for path in sorted((folder / target).glob("*"))]


def _seed(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".packed" else data


def save(finding: Finding, target: str, folder: Path) -> Path:
    """Write the input and, beside it, what it does and how to run it again; return the path of the input."""
    name = f"{finding.kind}-{blake2b(finding.signature.encode(), digest_size=5).hexdigest()}"
    path = folder / target / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    again = f"python -m tests.fuzz {target} --replay {shlex.quote(str(path))}"
    path.with_suffix(".txt").write_text(f"{again}\n\n{finding.signature}\n\n{finding.text}\n", encoding="utf-8")
    return path
