"""`make demo-system`: run the whole system, kill every part of it once, and check that all data agree."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.consistency import disagreements, failed_checks
from examples.riders import rate_rides
from examples.system import System
from pipelines.cli.output import print_fields, print_line
from pipelines.serving.read import published
from tests.services.requirements import missing
from tests.services.waiting import wait_for

_RATINGS = 500
_RIDERS = 2
_SETTLE_SECONDS = 120.0


def main() -> None:
    """Run the demo; exit with 1 if anything disagrees."""
    missing_services = [reason for service in ("kafka", "redis", "postgres") if (reason := missing(service))]
    if missing_services:
        sys.exit("\n".join(missing_services))
    with tempfile.TemporaryDirectory(prefix="karmalake-system-") as folder:
        print_line("starting PostgreSQL, Redis and Apache Kafka; a rating service, relay, stream and notify")
        with System(Path(folder)) as system:
            problems = _run(system)
    print_line("\n".join(problems) or "every rating is scored exactly once; verify and audit pass")
    sys.exit(1 if problems else 0)


def _run(system: System) -> list[str]:
    with ThreadPoolExecutor(_RIDERS) as pool:
        riders = [
            pool.submit(rate_rides, system.port, seed, lambda rated: rated >= _RATINGS, 0.02) for seed in range(_RIDERS)
        ]
        for name, part in system.parts.items():
            print_line(f"killing and restarting {name}")
            part.kill()
            part.start()
        rated = sum(rider.result() for rider in riders)
    print_line(f"{rated:,} ratings stored by the service; waiting until every part has processed them")
    wait_for("all data to agree", lambda: not disagreements(system), _SETTLE_SECONDS)
    info = published(system.settings)
    print_fields(
        [
            ("ratings in the service's table", len(system.ratings())),
            ("low ratings sent to support", len(system.notified())),
            ("drivers told that they reached a level", len({driver for driver, _ in system.messages().values()})),
            ("documents in Redis", info and info.documents),
            ("staleness, seconds", info and info.staleness_seconds),
        ]
    )
    return failed_checks(system)


if __name__ == "__main__":
    main()
