"""A small service: riders rate drivers. The rating and its event are one transaction; nobody waits for karmalake.

`python -m examples.service PORT DATABASE_URL REDIS_URL` answers, on 127.0.0.1,

    PUT  /rides/{ride_id}/rating   {"driver": ..., "rider": ..., "stars": 1 to 5}: sent again, it changes nothing
    GET  /drivers/{driver}         the document of the driver's reputation, as karmalake serves it
    POST /hooks/low-rating         where `karmalake notify` tells of low ratings (notify.toml), signed
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
from sqlalchemy import Column, DateTime, Engine, Integer, MetaData, String, Table, create_engine, select
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
TOLD = Table("told", METADATA, Column("event_id", String(128), primary_key=True), Column("text", String(500)))
outbox.outbox_table(METADATA)
_STARS = range(1, 6)


def rate(engine: Engine, ride: str, rating: dict[str, Any]) -> bool:
    """Keep a rating and its event, both or neither; return whether it is new."""
    driver, rider, stars = rating["driver"], rating["rider"], rating["stars"]
    now = datetime.now(UTC)
    with engine.begin() as connection:
        if connection.execute(select(RATINGS.c.ride).where(RATINGS.c.ride == ride)).first():
            return False
        connection.execute(RATINGS.insert().values(ride=ride, driver=driver, rider=rider, stars=stars, rated=now))
        about = {"rating": str(stars), "rater_id": rider}
        outbox.add(connection, outbox.Event(f"{ride}/rated", driver, "DriverRated", now, about))
    return True


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are sent apart: the second would wait 40 ms
    engine: Engine
    settings: Settings
    secret: bytes

    def do_PUT(self) -> None:
        """Take a rating."""
        _, _, ride, _ = self.path.split("/")
        rating = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if rating.get("stars") not in _STARS:
            return self._answer(HTTPStatus.BAD_REQUEST, {"error": "stars must be 1 to 5"})
        try:
            new = rate(self.engine, ride, rating)
        except IntegrityError:  # another request was quicker with the same ride
            new = False
        except DBAPIError:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the database is away: try again"})
        return self._answer(HTTPStatus.CREATED if new else HTTPStatus.OK, {})

    def do_GET(self) -> None:
        """Show a driver's reputation."""
        document = read_reputation(self.path.rpartition("/")[2], self.settings)
        self._answer(HTTPStatus.OK if document else HTTPStatus.NOT_FOUND, document or {})

    def do_POST(self) -> None:
        """Be told of a low rating; the same event is kept once."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        signed = self.headers["Karmalake-Timestamp"].encode() + b"." + content
        mine = "v1=" + hmac.new(self.secret, signed, "sha256").hexdigest()
        if not hmac.compare_digest(mine, self.headers["Karmalake-Signature"]):
            return self._answer(HTTPStatus.FORBIDDEN, {"error": "not signed by karmalake"})
        said = json.loads(content)
        try:
            with suppress(IntegrityError), self.engine.begin() as connection:
                connection.execute(TOLD.insert().values(event_id=said["event_id"], text=said["text"]))
        except DBAPIError:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {})
        return self._answer(HTTPStatus.OK, {})

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def _answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until the process is ended."""
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
