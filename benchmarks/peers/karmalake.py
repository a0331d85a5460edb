"""karmalake itself, as `karmalake drain` runs it, with default settings, into a new lake."""
# ruff: noqa: E402 - what the command does before anything else is imported is done here too

from pathlib import Path

from pipelines.ingest.malloc import tune_malloc

tune_malloc()

from benchmarks.peers.protocol import Job, running_children_seconds, serve
from pipelines.drain import drain, open_drain
from pipelines.settings import ContractSettings, IngestSettings, KafkaSettings, Settings, SourcesSettings


def settings_of(job: Job, name: str = "data") -> Settings:
    """Return default settings that read the topic of a job into a lake of its own."""
    kafka = KafkaSettings(bootstrap_servers=job.bootstrap_servers, topic=job.topic, group_id=f"{name}-{job.topic}")
    contract = ContractSettings.model_validate({"format": job.format})
    found = Settings(data_dir=Path(job.folder) / name, kafka=kafka, contract=contract)
    return found.model_copy(update={"sources": _only_source(Path(job.sources))}) if job.sources else found


def _only_source(folder: Path) -> SourcesSettings:
    (path,) = folder.glob("*.toml")
    return SourcesSettings(folder=folder, only=(path.stem,))


def warm_up(job: Job) -> None:
    """Load the compiled loops by a small batch into another lake: part of the start, like the start of a JVM."""
    small = settings_of(job, "warm-up").model_copy(update={"ingest": IngestSettings(max_batch_records=1_000)})
    with open_drain(small) as ingest:
        drain(ingest, lambda _: None, max_batches=1)


def _drain(job: Job) -> dict[str, float]:
    """Drain; return the processor time of the start of the process of its source, which is not part of the drain."""
    with open_drain(settings_of(job)) as ingest:
        started = running_children_seconds()
        drain(ingest, lambda _: None)
    return {"start_cpu_seconds": started}


if __name__ == "__main__":
    serve(_drain, warm_up)
