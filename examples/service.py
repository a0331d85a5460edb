"""A small service: riders rate drivers. A rating and its event are one transaction; no request waits for karmalake.

`python -m examples.service PORT DATABASE_URL REDIS_URL` serves on 127.0.0.1:

    PUT  /rides/{ride_id}/rating   {"driver": ..., "rider": ..., "stars": 1 to 5}; idempotent
    GET  /drivers/{driver}         the driver's reputation document from karmalake
    POST /hooks/low-rating         signed webhook of `karmalake notify` for low ratings (notify.toml)
    POST /hooks/level              the same for drivers who reach a level: "You are gold now"
"""

import hmac
import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Column, DateTime, Engine, Insert, Integer, MetaData, String, Table, create_engine, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from pipelines.emit import outbox
from pipelines.serving.read import read_reputation
from pipelines.settings import RedisSettings, Settings

METADATA = MetaData()
RATINGS = Table(
    "ratings",
    METADATA,
    Column("ride", String(64), primary_key=True),
    Column("driver", String(64), nullable=False),
    Column("rider", String(64), nullable=False),
    Column("stars", Integer, nullable=False),
    Column("rated", DateTime(timezone=True), nullable=False),
)
NOTIFICATIONS = Table(
    "notifications", METADATA, Column("event_id", String(128), primary_key=True), Column("text", String(500))
)
MESSAGES = Table(
    "messages",
    METADATA,
    Column("event_id", String(128), primary_key=True),
    Column("driver", String(64)),
    Column("text", String(500)),
)
outbox.outbox_table(METADATA)
_STARS = range(1, 6)


def rate(engine: Engine, ride: str, rating: dict[str, Any]) -> bool:
    """Store a rating and its event in one transaction; return whether the rating is new."""
    driver, rider, stars = rating["driver"], rating["rider"], rating["stars"]
    now = datetime.now(UTC)
    with engine.begin() as connection:
        if connection.execute(select(RATINGS.c.ride).where(RATINGS.c.ride == ride)).first():
            return False
        connection.execute(RATINGS.insert().values(ride=ride, driver=driver, rider=rider, stars=stars, rated=now))
        metadata = {"rating": str(stars), "rater_id": rider}
        outbox.add(connection, outbox.Event(f"{ride}/rated", driver, "DriverRated", now, metadata))
    return True


def _stored(path: str, notification: dict[str, Any]) -> Insert:
    """Return the statement that stores a notification of a webhook."""
    values = {name: notification[name] for name in ("event_id", "text")}
    if path == "/hooks/level":
        return MESSAGES.insert().values(**values, driver=notification["user_id"])
    return NOTIFICATIONS.insert().values(**values)


class Handler(BaseHTTPRequestHandler):
    """The handler of one client connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent separately: Nagle delays the body by 40 ms
    engine: Engine
    settings: Settings
    secret: bytes

    def do_PUT(self) -> None:
        """Store a rating."""
        _, _, ride, _ = self.path.split("/")
        rating = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if rating.get("stars") not in _STARS:
            return self._respond(HTTPStatus.BAD_REQUEST, {"error": "stars must be 1 to 5"})
        try:
            new = rate(self.engine, ride, rating)
        except IntegrityError:  # a concurrent request stored the same ride
            new = False
        except DBAPIError:
            return self._respond(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the database is unavailable: try again"})
        return self._respond(HTTPStatus.CREATED if new else HTTPStatus.OK, {})

    def do_GET(self) -> None:
        """Return a driver's reputation."""
        document = read_reputation(self.path.rpartition("/")[2], self.settings)
        self._respond(HTTPStatus.OK if document else HTTPStatus.NOT_FOUND, document or {})

    def do_POST(self) -> None:
        """Store a notification of a low rating, or a message to a driver about a level, once per event."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        signed_content = self.headers["Karmalake-Timestamp"].encode() + b"." + content
        signature = "v1=" + hmac.new(self.secret, signed_content, "sha256").hexdigest()
        if not hmac.compare_digest(signature, self.headers["Karmalake-Signature"]):
            return self._respond(HTTPStatus.FORBIDDEN, {"error": "not signed by karmalake"})
        notification = json.loads(content)
        try:
            with suppress(IntegrityError), self.engine.begin() as connection:
                connection.execute(_stored(self.path, notification))
        except DBAPIError:
            return self._respond(HTTPStatus.SERVICE_UNAVAILABLE, {})
        return self._respond(HTTPStatus.OK, {})

    def log_message(self, *_: object) -> None:
        """Do not log requests."""

    def _respond(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until the process ends."""
    port, database_url, redis_url = sys.argv[1:]
    Handler.engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"), pool_pre_ping=True)
    Handler.secret = os.environ["SUPPORT_WEBHOOK_SECRET"].encode()
    Handler.settings = Settings(redis=RedisSettings(url=SecretStr(redis_url)))
    METADATA.create_all(Handler.engine)
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) as server:
        sys.stdout.write(f"serving on {port} as process {os.getpid()}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
