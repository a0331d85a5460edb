"""The running demo: broker, cache, registry and the four teams; `karmalake ingest` brings their topics in.

ratings team    -> ride-ratings (Avro)        -+
payments team   -> payments (JSON)            -+-> karmalake ingest -> lake
moderation team -> moderation (CloudEvents)   -+
reviews team    -> shop.public.reviews (CDC)  -+
"""

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from examples.foreign.teams import moderation, payments, ratings, reviews
from examples.foreign.teams.registry import Registry
from examples.foreign.teams.team import Team
from pipelines.local.services import start, stop, with_local_endpoints
from pipelines.settings import Settings, load_settings
from tests.commands import KARMALAKE, Program, run

_HERE = Path(__file__).parent


class Town:
    """The teams, and karmalake beside them: `ingest` is the process that is killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            registry = started.enter_context(Registry())
            self._variables = {
                "KARMALAKE_CONFIG": str(_HERE / "karmalake.toml"),
                "KARMALAKE_DATA_DIR": str(self._folder / "data"),
                "KARMALAKE_CONTRACT_SCHEMA_REGISTRY_URL": registry.url,
                "KARMALAKE_REPUTATION_POLICY": str(_HERE / "policy.toml"),
                "PYTHONPATH": str(_HERE.parents[1]),
                "PYTHONUNBUFFERED": "1",
            }
            bare = load_settings(self._variables)
            started.callback(stop, bare)
            start(bare)
            self.settings: Settings = with_local_endpoints(bare)
            self.teams = {team.topic: started.enter_context(team) for team in self._hired(registry.port)}
            log = self._folder / "ingest.log"
            self.ingest = Program("ingest", [*KARMALAKE, "ingest"], self._variables, log, "ingesting")
            started.push(self.ingest)
            self._running = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def _hired(self, registry_port: int) -> list[Team]:
        records = {
            ratings.TOPIC: ratings.ratings(self._seed, registry_port),
            payments.TOPIC: payments.payments(self._seed),
            moderation.TOPIC: moderation.decisions(self._seed),
            reviews.TOPIC: reviews.changes(self._seed),
        }
        (self._folder / "books").mkdir()
        brokers = self.settings.kafka.bootstrap_servers or ""
        return [Team(topic, each, brokers, self._folder / "books") for topic, each in records.items()]

    def work(self, records: int) -> None:
        """Have every team send its next records."""
        for team in self.teams.values():
            team.work(records)

    def books(self) -> dict[str, list[dict[str, Any]]]:
        """Return the books of the teams by topic, a line for each record."""
        return {
            topic: [json.loads(text) for text in team.books.read_text(encoding="utf-8").splitlines()]
            for topic, team in self.teams.items()
        }

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a karmalake command of this town to its end."""
        return run([*KARMALAKE, *arguments], env=os.environ | self._variables | {"COLUMNS": "160"})
