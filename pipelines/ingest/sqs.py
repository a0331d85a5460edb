"""Amazon SQS client for `queue.py`; also for EventBridge with an SQS queue as its target.

A body is text; the contract unwraps the event in it (`contract/queue_messages.py`). The region is that of the queue's
URL, else AWS_REGION, else boto3's own. Endpoint and credentials come from boto3's variables and files
(AWS_ENDPOINT_URL, AWS_PROFILE, ...).
"""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from pipelines.boundary.extras import extra
from pipelines.boundary.text import amount
from pipelines.errors import ConfigurationError, KarmalakeError, TransientError, one_line, truncate
from pipelines.ingest.message import Backlog, Message, MissingQueueError
from pipelines.settings import Settings

with extra("sqs", "SQS"):
    import boto3
    from botocore import exceptions

_MAX_REQUEST_MESSAGES = 10
"""Messages that one request can receive or delete: SQS's limit."""
_MAX_WAIT_SECONDS = 20
"""SQS's limit. Each request is paid for, and a stop does not wait for its end (`cli/signals.py`)."""
_CONTENT_TYPE = "application/x-amz-json"
"""How the content type of each answer begins: https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html."""
_NOT_FOUND = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"}
_REGION = re.compile(r"(?:\.|//)sqs\.([a-z0-9-]+)\.|//([a-z0-9-]+)\.queue\.amazonaws\.")
"""The region in the URL of a queue of AWS: sqs.eu-west-1.amazonaws.com, or the legacy eu-west-1.queue.amazonaws.com."""
_MISTAKES = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.NoRegionError,
    exceptions.InvalidRegionError,
    exceptions.ProfileNotFound,
    exceptions.ConfigParseError,
    exceptions.InvalidConfigError,
)
"""boto3's errors about its variables and files, which no retry corrects."""
_REFUSED = {"AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "SignatureDoesNotMatch"}


@dataclass(slots=True)
class SQS:
    """One queue; a message that is not deleted within its visibility timeout is redelivered."""

    name: str
    place: str
    client: Any
    max_wait_seconds: float = _MAX_WAIT_SECONDS

    def receive(self, max_messages: int, wait_seconds: float) -> list[Message]:
        """Return up to ten messages."""
        with _translate_errors(self.place):
            response = self.client.receive_message(
                QueueUrl=self.place,
                MaxNumberOfMessages=min(max_messages, _MAX_REQUEST_MESSAGES),
                WaitTimeSeconds=ceil(wait_seconds),
                MessageSystemAttributeNames=["SentTimestamp"],
            )
            return [_message(message) for message in response.get("Messages", [])]

    def acknowledge(self, receipts: list[Any]) -> None:
        """Delete messages, ten at a time."""
        with _translate_errors(self.place):
            for entries in _entries(receipts):
                failed = self.client.delete_message_batch(QueueUrl=self.place, Entries=entries).get("Failed", [])
                if failed:
                    messages = amount(len(failed), "message")
                    raise TransientError(f"{self.place} did not delete {messages}: {failed[0]['Code']}")

    def release(self, receipts: list[Any]) -> None:
        """Make messages visible again, ten at a time; one that is not is visible after its timeout."""
        with _translate_errors(self.place):
            for entries in _entries(receipts):
                visible = [entry | {"VisibilityTimeout": 0} for entry in entries]
                self.client.change_message_visibility_batch(QueueUrl=self.place, Entries=visible)

    def backlog(self) -> Backlog:
        """Return the messages that are visible, and those that are not until their visibility timeout is over."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        with _translate_errors(self.place):
            attributes = self.client.get_queue_attributes(QueueUrl=self.place, AttributeNames=names)["Attributes"]
            return Backlog(*(int(attributes[name]) for name in names))


def _message(message: dict[str, Any]) -> Message:
    value = message["Body"].encode(errors="surrogatepass")  # half of a surrogate pair: for the contract to reject
    return Message(value, int(message["Attributes"]["SentTimestamp"]), message["ReceiptHandle"])


def _entries(receipts: list[Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the entries of each request."""
    for start in range(0, len(receipts), _MAX_REQUEST_MESSAGES):
        chunk = receipts[start : start + _MAX_REQUEST_MESSAGES]
        yield [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(chunk)]


@contextmanager
def open_sqs(settings: Settings) -> Generator[SQS]:
    """Yield the queue that `queue.url` names; it must exist."""
    if settings.queue.url is None:
        raise ConfigurationError("queue.url is missing: https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE")
    url = settings.queue.url.get_secret_value()
    with _translate_errors(url, MissingQueueError):
        client = checked_client(_region(url))
        client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    try:
        yield SQS(f"sqs:{url.rpartition('/')[2]}", url, client)
    finally:
        client.close()


def _region(url: str) -> str | None:
    """Return the region of a queue; None leaves it to boto3, which does not read AWS_REGION itself."""
    found = _REGION.search(url)
    return (found[1] or found[2]) if found else os.environ.get("AWS_REGION")


def checked_client(region: str | None = None) -> Any:
    """Return a client of SQS that raises ValueError for an answer that is not SQS's.

    boto3 takes any body with status 200 for an answer without members, which is what an empty queue sends. Raises
    ConfigurationError for an endpoint that is not a URL, which is boto3's only ValueError here.
    """
    try:
        client = boto3.Session().client("sqs", region_name=region or None)
    except ValueError as error:
        raise ConfigurationError(f"SQS has no usable endpoint: {one_line(error)}: correct AWS_ENDPOINT_URL") from None
    client.meta.events.register("after-call.sqs", _check_answer)
    return client


def _check_answer(http_response: Any, parsed: dict[str, Any], **_: object) -> None:
    """Accept an error, an answer with a member, and one of the protocol's content type, which web servers do not send.

    Servers that imitate SQS may have another type, with the members of each answer.
    """
    content_type = http_response.headers.get("content-type", "")
    if parsed.keys() <= {"ResponseMetadata"} and not content_type.lower().startswith(_CONTENT_TYPE):
        raise ValueError(f"its content type is {content_type!r} instead of {_CONTENT_TYPE!r}")


@contextmanager
def _translate_errors(url: str, missing: type[KarmalakeError] = TransientError) -> Generator[None]:
    """Raise errors of the tree; `missing` if there is no such queue, which was there when it was opened."""
    try:
        yield
    except exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _NOT_FOUND:
            raise missing(
                f"SQS has no queue {url} in {_region(url) or 'the default region'}: create it, or correct queue.url"
            ) from None
        if code in _REFUSED:
            raise ConfigurationError(
                f"{url} refused access ({code}): check the credentials and the queue's policy"
            ) from None
        raise TransientError(f"{url} failed: {error}; try again") from error
    except _MISTAKES as error:
        raise ConfigurationError(
            f"{url}: {one_line(error)}: correct AWS_REGION, AWS_PROFILE or the credentials"
        ) from None
    except exceptions.BotoCoreError as error:
        raise TransientError(f"{url} failed: {error}; try again") from error
    except KarmalakeError:
        raise
    except Exception as error:  # whatever an invalid answer makes boto3, or our reading of it, raise
        raise TransientError(
            f"{url} sent an invalid answer ({truncate(repr(error))}): check queue.url and AWS_ENDPOINT_URL, or "
            "try again"
        ) from error
