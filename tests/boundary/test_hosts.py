"""The Host and Origin headers that our servers accept."""

import pytest

from pipelines.boundary.hosts import is_allowed_host, is_allowed_origin

NAMES = ("Karma.example", "other.example:8443")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:2718", True),
        ("192.168.1.7:80", True),
        ("[::1]:2718", True),
        ("[fe80::1]", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("karma.example", True),
        ("other.example", True),
        (None, False),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("karma.example.evil.example", False),
        ("karma.example@evil.example", False),
        ("127.0.0.1 evil.example", False),
        ("127.0.0.1/evil", False),
        ("127.0.0.1:port", False),
        ("2130706433", False),
        ("0x7f.1", False),
        ("[127.0.0.1.evil]", False),
        ("::1", False),
        ("localhost\n", False),
    ],
)
def test_a_host(host: str | None, allowed: bool) -> None:
    """IP addresses, localhost and the given names are accepted; look-alikes are not."""
    assert is_allowed_host(host, NAMES) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:2718", True),
        ("https://karma.example", True),
        ("HTTPS://KARMA.EXAMPLE", True),
        ("http://LOCALHOST:2718", False),
        ("https://other.example:8443", True),
        ("", False),
        ("null", False),
        ("http://127.0.0.1", False),
        ("http://127.0.0.1:2719", False),
        ("http://localhost:2718", False),
        ("https://karma.example:8443", False),
        ("https://other.example", False),
        ("https://karma.example.evil", False),
        ("file://127.0.0.1:2718", False),
        ("http://127.0.0.1:2718/", False),
    ],
)
def test_an_origin(origin: str | None, allowed: bool) -> None:
    """A missing origin, the requested host and the given names are accepted, if the port matches, in any case."""
    assert is_allowed_origin(origin, "127.0.0.1:2718", NAMES) is allowed


def test_the_case_of_a_host_does_not_matter() -> None:
    """Host names have no case: a browser sends its own in lower case, another client may not."""
    assert is_allowed_origin("http://karma.example:1", "Karma.Example:1", ())
