"""Names of time zones: any text is one or is none."""

import pytest

from pipelines.boundary.time_zones import is_time_zone


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/Argentina/Buenos_Aires", "America/North_Dakota/New_Salem"])
def test_zones(name: str) -> None:
    """Zones of one, two and three parts."""
    assert is_time_zone(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Europe",
        "Europe/Berln",
        "../Europe/Berlin",
        "/etc/localtime",
        "Europe/Berlin\0",
        "\ud800",
        "a/" * 5_000,
        "a" * 5_000,
        "posix/Europe/Berlin",
        "right/UTC",
        "posixrules",
        "Factory",
    ],
)
def test_what_is_none(name: str) -> None:
    """Also a name of so many parts that each would be imported within the one before."""
    assert not is_time_zone(name)
