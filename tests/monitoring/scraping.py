"""Scrapes the metrics and health of a process, as Prometheus and probes do."""

import re
import subprocess
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.services.waiting import wait_for

METRICS_AT = re.compile(r"metrics at http://([0-9.]+:[0-9]+)/metrics")


@dataclass(frozen=True)
class Scraped:
    """The samples of one scrape, by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def total(self, name: str) -> float:
        return sum(value for (sampled, _), value in self.samples.items() if sampled == name)


def scrape(address: str) -> Scraped:
    """Return the current samples of /metrics."""
    answer = httpx.get(f"http://{address}/metrics")
    answer.raise_for_status()
    families = text_string_to_metric_families(answer.text)
    samples = [sample for family in families for sample in family.samples]
    return Scraped({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})


def status(address: str, path: str) -> tuple[int, str]:
    answer = httpx.get(f"http://{address}{path}")
    return answer.status_code, answer.text


def metrics_address(process: subprocess.Popen[str]) -> str:
    """Return the metrics address that a starting process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := METRICS_AT.search(line):
            return found[1]
    raise AssertionError("the process ended without saying where its metrics are")


def becomes(address: str, value: float, name: str, **labels: str) -> None:
    """Wait until a metric has this value."""
    wait_for(f"{name}{labels} to be {value}", lambda: scrape(address).value(name, **labels) == value)
