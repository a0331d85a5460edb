"""Amazon SQS, and EventBridge with it as its target, behind `queue.py`.

A body is text: the event in JSON, or in base64 what `contract.format` says. EventBridge wraps JSON: its `detail` is the
event. Where AWS is, and who asks, say boto3's own variables and files (AWS_REGION, AWS_ENDPOINT_URL, ...).
"""

import base64
import binascii
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.ingest.message import Message
from pipelines.settings import Settings

try:
    import boto3
    from botocore import exceptions
except ImportError:
    raise ConfigurationError("SQS needs a package more: pip install 'karmalake[sqs]'") from None

_AT_ONCE = 10
"""What SQS gives or forgets at a time."""
_LONGEST_WAIT_SECONDS = 20
_ABSENT = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"}
_REFUSED = {"AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "SignatureDoesNotMatch"}


@dataclass(slots=True)
class SQS:
    """One queue; a message that is not forgotten within its visibility timeout comes again."""

    name: str
    place: str
    client: Any
    in_json: bool

    def receive(self, most: int, wait_seconds: float) -> list[Message]:
        """Return up to ten messages."""
        with _translated(self.place):
            answer = self.client.receive_message(
                QueueUrl=self.place,
                MaxNumberOfMessages=min(most, _AT_ONCE),
                WaitTimeSeconds=min(_LONGEST_WAIT_SECONDS, ceil(wait_seconds)),
                MessageSystemAttributeNames=["SentTimestamp"],
            )
        return [self._message(found) for found in answer.get("Messages", [])]

    def acknowledge(self, receipts: list[Any]) -> None:
        """Delete messages, ten at a time."""
        with _translated(self.place):
            for start in range(0, len(receipts), _AT_ONCE):
                share = receipts[start : start + _AT_ONCE]
                entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(share)]
                failed = self.client.delete_message_batch(QueueUrl=self.place, Entries=entries).get("Failed", [])
                if failed:
                    raise TransientError(f"{self.place} did not forget {len(failed)} messages: {failed[0]['Message']}")

    def waiting(self) -> int:
        """Return about how many messages can be received."""
        name = "ApproximateNumberOfMessages"
        with _translated(self.place):
            answer = self.client.get_queue_attributes(QueueUrl=self.place, AttributeNames=[name])
        return int(answer["Attributes"][name])

    def _message(self, found: dict[str, Any]) -> Message:
        value = _unwrapped(found["Body"]) if self.in_json else _decoded(found["Body"])
        return Message(value, int(found["Attributes"]["SentTimestamp"]), found["ReceiptHandle"])


@contextmanager
def open_sqs(settings: Settings) -> Generator[SQS]:
    """Yield the queue that `queue.url` names, which has to exist."""
    if settings.queue.url is None:
        raise ConfigurationError("queue.url is missing: https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE")
    url = settings.queue.url.get_secret_value()
    with _translated(url):
        client = boto3.client("sqs")
        client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        yield SQS(f"sqs:{url.rpartition('/')[2]}", url, client, settings.contract.format == "json")
        client.close()


def _decoded(body: str) -> bytes:
    """Return what a body holds in base64; one that does not becomes a dead letter as it is."""
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return _as_it_is(body)


def _unwrapped(body: str) -> bytes:
    """Return the event of a body in JSON: itself, or what EventBridge has wrapped."""
    try:
        said = json.loads(body)
        wrapped = isinstance(said, dict) and {"detail", "detail-type"} <= said.keys()
        return json.dumps(said["detail"]).encode() if wrapped else _as_it_is(body)
    except (ValueError, RecursionError):
        return _as_it_is(body)


def _as_it_is(body: str) -> bytes:
    """Return a body for the contract to judge; half of a surrogate pair, which is no text, is left for it to reject."""
    return body.encode(errors="surrogatepass")


@contextmanager
def _translated(url: str) -> Generator[None]:
    try:
        yield
    except exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _ABSENT:
            raise UsageError(f"there is no queue {url}") from None
        if code in _REFUSED:
            raise ConfigurationError(
                f"{url} refuses us ({code}): check the credentials and the queue's policy"
            ) from None
        raise TransientError(f"{url} failed: {error}; try again") from error
    except (exceptions.NoCredentialsError, exceptions.NoRegionError) as error:
        raise ConfigurationError(f"{url}: {error}: set AWS_REGION and credentials") from None
    except exceptions.BotoCoreError as error:
        raise TransientError(f"{url} failed: {error}; try again") from error
