"""Names and origins: which ones a server of ours answers."""

import pytest

from pipelines.boundary.hosts import host_allowed, origin_allowed

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
    """Addresses in digits, localhost and the names given; nothing that only looks like one."""
    assert host_allowed(host, NAMES) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:2718", True),
        ("https://karma.example", True),
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
    """No origin, that of the host that was asked, and those of the names given: with the very port."""
    assert origin_allowed(origin, "127.0.0.1:2718", NAMES) is allowed
