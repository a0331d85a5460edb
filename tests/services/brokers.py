"""A fixture that runs a test on the embedded broker and on Apache Kafka, through each of its listeners."""

import pytest

from pipelines.settings import KafkaSettings, Settings


@pytest.fixture(
    params=[
        "embedded",
        *(pytest.param(listener, marks=pytest.mark.jvm) for listener in ("PLAINTEXT", "SSL", "SASL_SSL")),
    ]
)
def bus(request: pytest.FixtureRequest, settings: Settings) -> KafkaSettings:
    """Return the settings of a broker, with a topic that does not exist yet."""
    if request.param == "embedded":
        return settings.kafka
    return request.getfixturevalue("kafka").settings(request.param, topic=settings.kafka.topic)
