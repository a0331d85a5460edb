"""The topics that are ingested, and the source of each: what makes events of its records.

The only module that knows which sources there are: our own contract, the source `contract` of the topic `kafka.topic`,
and the files in `sources.folder`. Everything else sees topics with a `Decoder`.
"""

from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from pipelines.contract.decode import Decoded, Decoder, decode
from pipelines.errors import ConfigurationError, UsageError
from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.source_files import CONTRACT, SourceFile, read_sources
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class IngestedTopic:
    """A topic, its source, and the decoder of its records."""

    name: str
    source: str
    digest: str | None
    """The digest of the source file; None for our own contract."""
    decode: Decoder


def topic_sources(settings: Settings) -> dict[str, str]:
    """Return the name of the source of each topic that is ingested, by topic.

    Raises ConfigurationError if `sources.only` names an unknown source, or two sources share a topic.
    """
    return {topic: name for name, topics in _topics(settings) for topic in topics}


def require_topics(settings: Settings, what: str) -> None:
    """Raise UsageError if ingest reads a queue; `what` is a command or an option that is for topics."""
    if kind := settings.queue.kind:
        raise UsageError(f"{what} is not available with a queue, and queue.kind is {kind}: it needs a topic of Kafka")


def require_no_mapped_topics(settings: Settings) -> None:
    """Raise ConfigurationError unless our own contract is the only source of a bus, as it is with a queue."""
    names = dict.fromkeys(topic_sources(settings).values())
    if others := [name for name in names if name != CONTRACT]:
        raise ConfigurationError(
            f"the messages of a queue are in our own contract, and {', '.join(others)} would read topics, which are "
            f"not read: leave such sources out with sources.only = ['{CONTRACT}']"
        )


def explain_missing_topic(settings: Settings, topic: str) -> str:
    """Return the sentence about a topic that does not exist, with its source and what to do."""
    source = topic_sources(settings).get(topic, CONTRACT)
    missing = f"does not exist on {settings.kafka.bootstrap_servers}"
    if source == CONTRACT:
        return f"topic {topic} {missing}: create it with `karmalake topics ensure`{_without_contract(settings)}"
    return (
        f"topic {topic} of the source {source} {missing}: correct the topic in {settings.sources.folder}/"
        f"{source}.toml, or leave the source out with sources.only"
    )


def _without_contract(settings: Settings) -> str:
    """Return what to set instead if all events come from the sources; empty if no other source has a topic."""
    others = sorted(file.name for file in selected_files(settings) if file.topics)
    return f", or, if it is not used, leave it out: sources.only = [{', '.join(map(repr, others))}]" if others else ""


@contextmanager
def open_topics(settings: Settings, only: Collection[str] = ()) -> Generator[dict[str, IngestedTopic]]:
    """Yield the topics that are ingested, or `only` these of them, by name, with their decoders open.

    Raises like `topic_sources`, and UsageError if there is no topic.
    """
    sources = {topic: name for topic, name in topic_sources(settings).items() if not only or topic in only}
    if not sources:
        raise UsageError("no source has a topic: add one to sources.only, or `contract` for kafka.topic")
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_source_decoder(settings, name)) for name in set(sources.values())}
        yield {topic: replace(opened[name], name=topic) for topic, name in sources.items()}


@contextmanager
def open_source_decoder(settings: Settings, name: str) -> Generator[IngestedTopic]:
    """Yield a source by its name, as that of a topic without a name. Raises UsageError if there is none."""
    if name == CONTRACT:
        yield IngestedTopic("", CONTRACT, None, contract_decoder(settings))
        return
    found = [file for file in selected_files(settings) if file.name == name]
    if not found:
        raise UsageError(
            f"there is no source {name} in {settings.sources.folder or 'sources.folder, which is not set'}: restore "
            f"its file {name}.toml, or add it to sources.only"
        )
    with open_mapping(found[0], settings) as decode_mapped:
        yield IngestedTopic("", name, found[0].digest, decode_mapped)


def contract_decoder(settings: Settings) -> Decoder:
    """Return the decoder of our own contract."""

    def decode_contract(records: pa.Table, now: datetime | None) -> Decoded:
        return decode(records, settings.contract, now)

    return decode_contract


def _topics(settings: Settings) -> list[tuple[str, tuple[str, ...]]]:
    """Return the selected sources and their topics."""
    own = [(CONTRACT, (settings.kafka.topic,))] if _is_selected(settings, CONTRACT) else []
    found = [*own, *((file.name, file.topics) for file in selected_files(settings))]
    sources: dict[str, str] = {}
    for name, topics in found:
        for topic in topics:
            if (other := sources.setdefault(topic, name)) != name:
                raise ConfigurationError(
                    f"the sources {other} and {name} both read the topic {topic}: a topic has one source; correct one "
                    "of them, or leave it out with sources.only"
                )
    return found


def selected_files(settings: Settings) -> list[SourceFile]:
    """Return the selected source files. Raises ConfigurationError for a name in `sources.only` that does not exist."""
    folder = settings.sources.folder
    files = read_sources(folder) if folder else ()
    known = {CONTRACT, *(file.name for file in files)}
    if unknown := [name for name in settings.sources.only if name not in known]:
        raise ConfigurationError(
            f"sources.only names {unknown[0]}, which is not a source: there are {', '.join(sorted(known))}"
            + (f" in {folder}" if folder else "; set sources.folder to the folder of the source files")
        )
    return [file for file in files if _is_selected(settings, file.name)]


def _is_selected(settings: Settings, name: str) -> bool:
    return not settings.sources.only or name in settings.sources.only
