"""Source files: every key is checked, and a mistake is one sentence with file and key."""

import os
from pathlib import Path

import pytest

from pipelines.errors import ConfigurationError
from pipelines.mapping.source_files import read_source, read_sources

_GOOD = """topic = "rides"
format = "json"
user_id = "driver.id"
time = "at"
action_type = "DriverRated"
"""


def _read(folder: Path, text: str) -> str:
    path = folder / "rides.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as error:
        read_source(path)
    return str(error.value).removeprefix(str(path))


def test_what_a_source_is(tmp_path: Path) -> None:
    """Name, topics, format, and a digest of the text and the schema file."""
    (tmp_path / "rides.toml").write_text(_GOOD)
    (source,) = read_sources(tmp_path)
    assert (source.name, source.topics, source.format) == ("rides", ("rides",), "json")
    assert len(source.digest) == 32
    (tmp_path / "rides.toml").write_text(_GOOD + "# changed\n")
    assert read_source(tmp_path / "rides.toml").digest != source.digest


def test_the_digest_covers_the_schema(tmp_path: Path) -> None:
    """A changed schema file is a changed source."""
    text = _GOOD.replace('"json"', '"avro"') + 'schema = "r.avsc"\n'
    (tmp_path / "rides.toml").write_text(text)
    digests = set()
    for content in ("{}", "{ }"):
        (tmp_path / "r.avsc").write_text(content)
        digests.add(read_source(tmp_path / "rides.toml").digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_GOOD + 'usr_id = "x"\n', ":6: usr_id: is not a key here: did you mean 'user_id'?"),
        (_GOOD.replace("topic", "topics"), ":1: topics: "),
        (_GOOD.replace('topic = "rides"\n', ""), ":1: source: give one of topic, topics and files"),
        (_GOOD.replace("json", "xml"), ":2: format: "),
        (_GOOD.replace('format = "json"\n', ""), ":1: format: is missing"),
        (_GOOD.replace("json", "avro"), ":1: source: give one of schema (a file) and registry = true"),
        (_GOOD.replace("json", "avro") + 'schema = "x.proto"\n', ":6: schema: is not a file .avsc, for format avro"),
        (_GOOD.replace("json", "avro") + 'schema = "x.avsc"\n', ": schema: "),
        (_GOOD + 'schema = "x.json"\n', ":6: schema: is not for json"),
        (_GOOD + 'select = "SELECT 1"\n', ":3: user_id: select and user_id exclude each other"),
        (_GOOD.replace('user_id = "driver.id"\n', ""), ":1: user_id: is missing: add it, or select, or like"),
        (_GOOD + 'action_type_column = "x"\n', ":1: source: give one of action_type and action_type_column"),
        (
            _GOOD + 'event_id = "x"\nevent_id_from = ["y"]\n',
            ":7: event_id_from: event_id and event_id_from exclude each other",
        ),
        (_GOOD + 'time_zone = "Mars/Olympus"\n', ":6: time_zone: 'Mars/Olympus' is not a time zone"),
        (f'select = """\nSELECT *\nFROM record\nformat = [x]\n[y]\n"""\n{_GOOD}time_unit = "h"\n', ":12: time_unit: "),
        (_GOOD + 'time_unit = "h"\n', ":6: time_unit: "),
        (_GOOD + 'rated = "x"\n', ":6: rated: is a key of a ready-made source"),
        (_GOOD + 'columns = { a = "INT); DROP TABLE x; --" }\n', "is not a type of DuckDB"),
        (_GOOD.replace('"rides"', '"rides.*"'), ":1: topic: 'rides.*' is not the name of a topic"),
        (_GOOD.replace('topic = "rides"', 'topics = ["a", "a"]'), ":1: topics: names a topic twice"),
        (_GOOD + 'columns = { a = "DOUBLE), CAST(random() AS DOUBLE" }\n', "is not a type of DuckDB"),
        (
            _GOOD + 'columns = { a = "STRUCT(\\"(\\" INT)), random(), CAST(1 AS STRUCT(\\")\\" INT)" }\n',
            "is not a type",
        ),
        (_GOOD + 'columns = { a = "INT) FROM batch WHERE (true" }\n', "is not a type of DuckDB"),
        (_GOOD + 'columns = { a = "STARS" }\n', "is not a type of DuckDB"),
        (_GOOD + 'columns = { key = "VARCHAR" }\n', "record has a column key already"),
        (_GOOD + 'columns = { __karmalake_row = "BIGINT" }\n', "record has a column __karmalake_row already"),
        (_GOOD + 'columns = { a = "INT", A = "INT" }\n', "record has a column A already"),
        (_GOOD + 'columns = { b = "INT", a = "STARS" }\n', ":6: columns.a: 'STARS' is not a type of DuckDB"),
        (_GOOD + 'time_format = "%"\n', ":6: time_format: '%' is not a time format"),
        (_GOOD + "topic = 1\n#", " is not TOML: a key or table is there twice (at line 6, column 10)"),
        (_GOOD.replace('"rides"', '""'), ":1: topic: is empty: give a value"),
        (_GOOD.replace('"rides"', "1"), ":1: topic: has to be a text in quotes, not 1"),
        (_GOOD.replace("driver.id", "driver..id"), ":3: user_id: 'driver..id' is not a path"),
        (_GOOD + 'event_id_from = [""]\n', ":6: event_id_from.0: '' is not a path"),
        (_GOOD + 'metadata = { rating = "" }\n', ":6: metadata.rating: '' is not a path"),
        (_GOOD + 'metadata = ["stars"]\n', ":6: metadata: has to be a table"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    """It has the file, the line or the key, and what to do."""
    assert message in _read(tmp_path, text)


def test_a_topic_has_one_source(tmp_path: Path) -> None:
    """A record has one fate, so two sources of one topic are refused."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(_GOOD)
    with pytest.raises(ConfigurationError, match=r"b\.toml: topic: rides is a topic of .*a\.toml already"):
        read_sources(tmp_path)


def test_a_name_is_plain(tmp_path: Path) -> None:
    """A source is named by its file."""
    (tmp_path / "two words.toml").write_text(_GOOD)
    with pytest.raises(ConfigurationError, match="rename the file"):
        read_sources(tmp_path)


def test_a_schema_is_a_file(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "r.avsc")
    assert _read(tmp_path, _GOOD.replace("json", "avro") + "schema = 'r.avsc'\n").endswith("r.avsc is not a file")
    long = _read(tmp_path, _GOOD.replace("json", "avro") + f"schema = '{'x' * 300}.avsc'\n")
    assert long.endswith("x.avsc cannot be read: File name too long")


_PROTO = """topic = "rides"
format = "protobuf"
schema = "schemas/ride.proto"
user_id = "user_id"
time = "at"
action_type = "Rode"
"""


@pytest.mark.parametrize("name", ["../private.proto", "{folder}/private.proto", "linked.proto", "inner/../../x.proto"])
def test_no_import_leads_out_of_the_folder_of_the_schema(tmp_path: Path, name: str) -> None:
    """Who wrote the schema would choose which files of its reader are read, whether or not they are there."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "private.proto").write_text("secret")
    (tmp_path / "schemas" / "linked.proto").symlink_to(tmp_path / "private.proto")
    name = name.format(folder=tmp_path)
    (tmp_path / "schemas" / "ride.proto").write_text(f'syntax = "proto3";\nimport "{name}";\n')
    message = _read(tmp_path, _PROTO)
    assert message.startswith(f": schema: the import {name!r} leads out of {tmp_path / 'schemas'}: put the file there")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "missing.proto", "google/protobuf/timestamp.proto", "folder"])
def test_an_import_that_is_not_there_is_for_the_compiler(tmp_path: Path, name: str) -> None:
    """Any name is read without an error of the file system."""
    (tmp_path / "schemas" / "folder").mkdir(parents=True)
    (tmp_path / "schemas" / "ride.proto").write_text(f'import "{name}";\n')
    (tmp_path / "rides.toml").write_text(_PROTO)
    schema = read_source(tmp_path / "rides.toml").schema
    assert schema
    assert schema.references == ()


def test_imports_are_found_among_very_many_lines(tmp_path: Path) -> None:
    """Blank lines take as long as others."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "rides.toml").write_text(_PROTO)
    (tmp_path / "schemas" / "a.proto").write_text("")
    (tmp_path / "schemas" / "ride.proto").write_text("\n" * 2_000_000 + 'message A {}\n \timport "a.proto";\n')
    schema = read_source(tmp_path / "rides.toml").schema
    assert schema
    assert schema.references == (("a.proto", ""),)


def test_imports_of_any_depth_and_number_are_bounded(tmp_path: Path) -> None:
    """A chain of imports is followed without recursion, and all of them together are of bounded size."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "rides.toml").write_text(_PROTO)
    names = ["ride.proto", *(f"{number}.proto" for number in range(2_000))]
    for name, imported in zip(names, [*names[1:], "ride.proto"], strict=True):
        (tmp_path / "schemas" / name).write_text(f'import "{imported}";\n')
    schema = read_source(tmp_path / "rides.toml").schema
    assert schema
    assert len(schema.references) == 2_000
    for name in names[1:4]:
        (tmp_path / "schemas" / name).write_text(f'import "{int(name[0]) + 1}.proto";\n//{"x" * 2_000_000}')
    assert ": schema: " in (message := _read(tmp_path, _PROTO))
    assert "imports over 4194304 characters: shorten it" in message


def test_no_source_has_the_name_of_the_contract(tmp_path: Path) -> None:
    """A file of that name would be decoded by the contract."""
    (tmp_path / "contract.toml").write_text(_GOOD)
    with pytest.raises(ConfigurationError, match="contract is the name of our own contract: rename the file"):
        read_sources(tmp_path)
