"""`make demo-system`: the whole system runs, every part of it is killed once, and everything agrees in the end."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.agreement import disagreements, failed_checks
from examples.riders import ride_on
from examples.system import System
from pipelines.cli.output import facts, say
from pipelines.serving.read import published
from tests.services.requirements import missing
from tests.services.waiting import wait_for

_RATINGS = 500
_RIDERS = 2
_SETTLE_SECONDS = 120.0


def main() -> None:
    """Run it, and end with 1 if anything does not agree."""
    lacking = [reason for service in ("kafka", "redis", "postgres") if (reason := missing(service))]
    if lacking:
        sys.exit("\n".join(lacking))
    with tempfile.TemporaryDirectory(prefix="karmalake-system-") as folder:
        say("starting PostgreSQL, Redis and Apache Kafka; a rating service, relay, stream and notify")
        with System(Path(folder)) as system:
            problems = _run(system)
    say("\n".join(problems) or "every rating is scored once, and no other; verify and audit agree")
    sys.exit(1 if problems else 0)


def _run(system: System) -> list[str]:
    with ThreadPoolExecutor(_RIDERS) as pool:
        riders = [
            pool.submit(ride_on, system.port, seed, lambda kept: kept >= _RATINGS, 0.02) for seed in range(_RIDERS)
        ]
        for name, part in system.parts.items():
            say(f"killing {name}, and starting it again")
            part.kill()
            part.start()
        kept = sum(rider.result() for rider in riders)
    say(f"{kept:,} ratings kept by the service; waiting until everything has come through")
    wait_for("everything to agree", lambda: not disagreements(system), _SETTLE_SECONDS)
    info = published(system.settings)
    facts(
        [
            ("ratings in the service's table", len(system.ratings())),
            ("low ratings told to support", len(system.told())),
            ("documents in Redis", info and info.documents),
            ("age of what is served, seconds", info and info.staleness_seconds),
        ]
    )
    return failed_checks(system)


if __name__ == "__main__":
    main()
