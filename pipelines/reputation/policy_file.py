"""Reading a policy file; mistakes are explained with file, line and remedy.

Owns where policies are found and the messages about invalid ones; `policy/` defines what a policy means.
"""

from pathlib import Path

from pydantic import ValidationError

from pipelines.boundary.mistakes import ELEMENT, FileFormat, Lines, Place
from pipelines.boundary.toml import abbreviate, exists, parse_toml, read_toml
from pipelines.errors import PolicyError
from pipelines.reputation.policy.model import Policy
from pipelines.reputation.policy_contradictions import contradictions

_SHIPPED = Path(__file__).parent / "policies"
_ABBREVIATED = {("fixed",), ("equals",), ("at",)}
"""Keys of which a file writes only the value, in place of their table."""


def shipped_policies() -> list[str]:
    """Return the names of the policies shipped with karmalake."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml") if not path.stem.endswith(".test"))


def load_policy(name_or_path: str | Path) -> Policy:
    """Read a shipped policy by its name, or a policy file by its path.

    Raises PolicyError naming file, line and remedy of every mistake.
    """
    path = locate_policy(name_or_path)
    return parse_policy(read_toml(path, PolicyError), str(path))


def parse_policy(text: str, place: str = "policy") -> Policy:
    """Read a policy from TOML text; error messages name `place` instead of a file.

    Raises PolicyError naming place, line and remedy of every mistake.
    """
    values = parse_toml(text, place, PolicyError)
    form = _WITH_VERSIONS if "versions" in values else _WITH_ONE_VERSION
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        raise PolicyError(form.explain(error, text, place)) from None
    if found := list(contradictions(policy)):
        raise PolicyError(form.report(found, len(found), text, place))
    return policy


def locate_policy(name_or_path: str | Path) -> Path:
    """Return the file of a policy, which may be a shipped one. Raises PolicyError if there is none."""
    name = str(name_or_path)
    if name in shipped_policies():
        return _SHIPPED / f"{name}.toml"
    path = Path(name)
    if not name or not exists(path):  # the path of an empty name is this folder
        raise PolicyError(
            f"there is no policy {abbreviate(name)!r}: name a TOML file, or one of the shipped policies "
            f"({', '.join(shipped_policies())})"
        )
    return path


def _shorten(path: Place, lines: Lines) -> Place:
    """Return the path as written in the file: without the index of an array, or a key, that the file abbreviates."""
    for array in ("versions", "emit"):
        for i in range(len(path) - 1):
            if path[i : i + 2] == (array, "0") and path[: i + 2] not in lines and path[: i + 1] not in lines:
                return _shorten(path[:i] + path[i + 2 :], lines)
    return path[:-1] if path[-1:] in _ABBREVIATED and path not in lines else path


def _without_emission(place: Place) -> Place:
    """Return a place as a file writes that of an action's only emission."""
    end = place.index("emit") if "emit" in place else len(place)
    return place[:end] + place[end + 2 :]


def _without_version(place: Place) -> Place:
    """Return a place as a file with one version writes it."""
    return _without_emission(place[2:] if place[:2] == ("versions", ELEMENT) else place)


_WITH_VERSIONS = FileFormat(Policy, "policy", _without_emission, _shorten)
_WITH_ONE_VERSION = FileFormat(Policy, "policy", _without_version, _shorten)
