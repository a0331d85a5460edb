"""Files written by operators: policies, notification rules, karmalake.toml. An error names the file."""

import random
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from pipelines.errors import ConfigurationError, PolicyError
from pipelines.mapping.source_files import read_source
from pipelines.notify.rule_file import load_rules
from pipelines.reputation.policy_file import load_policy, shipped_policies
from pipelines.settings import load_settings
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target, demand

_RULES = b"""[destinations.shop]
kind = "webhook"
url = "https://shop.example/hook"
secret_env = "SECRET"
request_seconds = 2.5

[destinations.feed]
kind = "redis_stream"
key = "feed"

[[rules]]
name = "low"
actions = ["DriverRated", "ReviewPosted"]
when = [{key = "rating", at_most = 2}]
text = "{user_id} has {metadata.rating} {{stars}}"
to = ["shop", "feed"]
"""
_SETTINGS = b"""data_dir = "lake"
[kafka]
bootstrap_servers = "localhost:9092"
topic = "events"
[contract]
max_event_id_bytes = 256
earliest = 2000-01-01T00:00:00Z
[ingest]
max_dead_letter_share = 0.5
max_wait_seconds = 1.5
[redis]
url = "redis://user:password@localhost:6379/0"
leaderboards = ["all_time", "last_7_days"]
[history]
metadata = {rating = "stars"}
"""
_SOURCES = (
    b"""files = ["votes/*.csv", "s3://bucket/{day}.parquet"]
user_id = "user"
time = "at"
time_unit = "ms"
time_zone = "Europe/Berlin"
action_type = "Voted"
event_id_from = ["user", "at"]
number_rows = true
[metadata]
stars = "stars"
[reading]
delimiter = ";"
null = ["", "NA"]
""",
    b"""topics = ["rides", "trips"]
format = "avro"
schema = "ride.avsc"
select = '''
SELECT value.id AS event_id, value.driver AS user_id, 'Rated' AS action_type, value.at AS timestamp FROM record
'''
""",
)
_VALUES = (
    b"1e999999999",
    b"-1e999999999",
    b"0.000000000000000000000000000000000001",
    b"99999999999999999999999999",
    b"-1",
    b"0",
    b"inf",
    b"nan",
    b"true",
    b'""',
    b'"\\u0000"',
    b'"\\u202e"',
    b'"../x"',
    b'"a.proto"',
    b"[]",
    b"{}",
    b"[[[]]]",
    b"9999-12-31T23:59:59Z",
    b"0001-01-01",
    b"23:59:60",
    b"[1e999999999]",
    b"[" * 3_000 + b"]" * 3_000,
    b"{a=" * 1_000 + b"1" + b"}" * 1_000,
    b"'''x'''",
    b'"' + b"x" * 100_000 + b'"',
)
_LINES = (
    b"[[versions]]",
    b"[a.b.c]",
    b"[" + b"a." * 2_000 + b"a]",
    b'"\\u0000" = 1',
    b"windows_days = [1, 1e999999999]",
    b"x" * 100_000 + b" = 1",
    b"a.b.c.d = 1",
    b"[[a]]\n[a]",
    b"# \xff",
)


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change a value, a line, or bytes."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0 | 1:
            name, equals, _ = lines[at].partition(b"=")
            lines[at] = name + b"= " + rng.choice(_VALUES) if equals else rng.choice(_LINES)
        case 2:
            lines.insert(at, rng.choice(_LINES))
        case 3:
            lines[at : at + 1] = []
        case 4:
            lines[at:at] = rng.sample(other_lines := other.split(b"\n"), min(3, len(other_lines)))
        case _:
            return mutate_bytes(rng, data, other)
    return b"\n".join(lines)


def generate(rng: random.Random, files: tuple[bytes, ...]) -> bytes:
    """Return a valid file with some of its values or lines exchanged."""
    data = rng.choice(files)
    for _ in range(rng.randint(0, 3)):
        data = mutate(rng, data, rng.choice(files))
    return data


def check(data: bytes, load: Callable[[Path], object], name: str) -> str:
    """Load the file as the commands do."""
    path = _folder() / name
    path.write_bytes(data)
    try:
        load(path)
    except (ConfigurationError, PolicyError) as error:
        message = str(error)
        demand(name in message or name == "karmalake.toml", f"the message does not name the file: {message[:200]}")
        demand(len(message) < 50_000, f"the message has {len(message)} characters")
        raise
    return "loaded"


def _load_settings(path: Path) -> object:
    return load_settings({}, path.parent)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _target(name: str, load: Callable[[Path], object], files: tuple[bytes, ...]) -> Target:
    checking = partial(check, load=load, name=name)
    return Target(partial(generate, files=files), checking, files[0], (ConfigurationError, PolicyError), mutate, 5.0)


_POLICIES = Path(load_policy.__code__.co_filename).parent / "policies"
TARGETS = {
    "policy": _target(
        "policy.toml", load_policy, tuple((_POLICIES / f"{name}.toml").read_bytes() for name in shipped_policies())
    ),
    "rules": _target("rules.toml", load_rules, (_RULES,)),
    "source-files": _target("source.toml", read_source, _SOURCES),
    "settings": _target("karmalake.toml", _load_settings, (_SETTINGS,)),
}
