"""A policy as a whole: its versions, and which version applies to which event."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from pipelines.boundary.mistakes import MistakeError, spelled
from pipelines.reputation.policy.decay import HalfLife, end_of_step, half_life
from pipelines.reputation.policy.numbers import MINUTE_US, Section
from pipelines.reputation.policy.rules import Rules

ALWAYS = (-(2**63), 2**63 - 1)
"""Bounds of a period without start or end, in microseconds since 1970."""
_OWN_KEYS = {"name", "description", "mode", "versions"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Edition:
    """Rules that apply to the events of [from_us, to_us)."""

    rules: Rules
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """A policy as in force at one moment.

    `rules` is the version in force: it determines status, retraction, correction, score bounds, windows and measures.
    `editions` determine points, ratings, gates and caps of an event by its event_time.
    """

    name: str
    rules: Rules
    editions: tuple[Edition, ...]
    score_digits: int
    """The most digits after the point that a score can have in any version; 0 means whole numbers."""
    rating_digits: int
    """The most digits after the point that a sum of ratings can have in any version."""
    decays: bool
    """Whether points decay in any version: scores are floats then."""
    half_lives: tuple[HalfLife | None, ...]
    """The half-lives of `editions`, the shortest first; None stands for points that do not decay, and comes last."""
    decayed_to_us: int = field(compare=False, repr=False)
    """The end of the decay step that contains the moment, to which scores are decayed; microseconds since 1970."""

    @property
    def has_time_points(self) -> bool:
        """Whether users earn points from time alone in any version."""
        return any(edition.rules.time for edition in self.editions)

    @property
    def reads_weights(self) -> bool:
        """Whether events say how much their ratings count."""
        return any(edition.rules.weighs_ratings for edition in self.editions)

    @property
    def weighs_ratings(self) -> bool:
        """Whether ratings have weights in the measures: their own, those of raters, or both."""
        return self.reads_weights or self.rules.raters is not None

    @property
    def decayed_to(self) -> datetime | None:
        """`decayed_to_us` as a datetime in UTC; None if no points decay."""
        return _EPOCH + timedelta(microseconds=self.decayed_to_us) if self.decays else None


class Policy(Section):
    """The versioned rules that turn events into points.

    A file with one version may have its keys at the top level instead of in an array `versions`.
    """

    name: Annotated[str, spelled(r"[a-z0-9][a-z0-9-]{0,63}", "has 1 to 64 small letters, digits and hyphens")]
    description: str = ""
    mode: Literal["retroactive", "prospective"] = "retroactive"
    """`retroactive`: the version in force rescores everything. `prospective`: each event's points, rating, gates and
    caps follow the version in force at its own time."""
    versions: tuple[Rules, ...]

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """Yield what a shell shows: name and versions, not the rules."""
        yield "name", self.name
        yield "versions", [rules.version for rules in self.versions]

    @model_validator(mode="before")
    @classmethod
    def _from_single(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "versions" in value:
            return value
        own = {key: item for key, item in value.items() if key in _OWN_KEYS}
        return {**own, "versions": ({key: item for key, item in value.items() if key not in _OWN_KEYS},)}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.versions:
            raise MistakeError(("versions",), "is empty: give at least one version")
        names = {self.versions[0].version}
        for i, (before, rules) in enumerate(zip(self.versions, self.versions[1:], strict=False), start=1):
            path = ("versions", str(i), "effective_from")
            if rules.effective_from is None:
                raise MistakeError(path[:2], "effective_from is missing: say when this version comes into force")
            if before.effective_from is not None and rules.effective_from <= before.effective_from:
                raise MistakeError(path, f"must be after that of version {before.version}, {before.effective_from}")
            if rules.version in names:
                raise MistakeError(
                    (*path[:2], "version"), f"{rules.version} is already used: give this version another name"
                )
            names.add(rules.version)
        return self

    @model_validator(mode="after")
    def _levels_follow_events(self) -> Self:
        if not any(rules.decays for rules in self.versions):
            return self
        for i, rules in enumerate(self.versions):
            for name, level in rules.levels.items():
                if level.depends_on_history:
                    message = (
                        "cannot be combined with half_life_days: a score that decays changes without events, so no "
                        "event says whether the level was kept; remove falls_below"
                    )
                    raise MistakeError(("versions", str(i), "levels", name, "falls_below"), message)
        return self

    @model_validator(mode="after")
    def _medians_are_of_plain_ratings(self) -> Self:
        for i, rules in enumerate(self.versions):
            medians = [name for name, measure in rules.measures.items() if measure.formula == "median"]
            read = self.versions if self.mode == "prospective" else (rules,)
            if medians and (rules.raters is not None or any(each.weighs_ratings for each in read)):
                message = (
                    "a median is of ratings that count alike, and this policy has weights of ratings or raters: choose "
                    "another formula, or remove the weights"
                )
                raise MistakeError(("versions", str(i), "measures", medians[0], "formula"), message)
        return self

    @property
    def version(self) -> str:
        """Return the name of the newest version, in force or not."""
        return self.versions[-1].version

    def to_json(self) -> str:
        """Return the policy as JSON that `Policy.model_validate_json` reads."""
        return self.model_dump_json(exclude_unset=True, by_alias=True)

    def at(self, as_of: datetime) -> EffectivePolicy:
        """Return the policy as in force at a moment; a version is in force from its effective_from, inclusive."""
        now = _microseconds(as_of)
        current = next(edition for edition in reversed(self._editions()) if edition.from_us <= now)
        editions = self._editions() if self.mode == "prospective" else (Edition(current.rules, *ALWAYS),)
        decayed_to_us = end_of_step(now, current.rules.decay_step_minutes * MINUTE_US)
        return EffectivePolicy(
            name=self.name,
            rules=current.rules,
            editions=editions,
            score_digits=max(rules.score_digits for rules in self.versions),
            rating_digits=max(rules.rating_digits for rules in self.versions),
            decays=any(rules.decays for rules in self.versions),
            half_lives=_half_lives(editions, decayed_to_us),
            decayed_to_us=decayed_to_us,
        )

    def _editions(self) -> tuple[Edition, ...]:
        starts = [_microseconds(rules.effective_from) for rules in self.versions[1:] if rules.effective_from]
        bounds = zip([ALWAYS[0], *starts], [*starts, ALWAYS[1]], strict=True)
        return tuple(Edition(rules, *bound) for rules, bound in zip(self.versions, bounds, strict=True))


def _half_lives(editions: tuple[Edition, ...], moment_us: int) -> tuple[HalfLife | None, ...]:
    lengths = {emission.half_life_us for edition in editions for emission in edition.rules.emissions}
    decaying = sorted(length for length in lengths if length is not None)
    return (*(half_life(length, moment_us) for length in decaying), *[None] * (None in lengths or not lengths))


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
