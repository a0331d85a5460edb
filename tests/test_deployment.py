"""Dockerfile, compose.yaml and docs/kubernetes.md, checked without a container engine: every name in them exists.

tests/containers runs the first two in one; tests/assets/test_processes.py runs Dagster's commands.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from typer.main import get_command

from assets.history import history
from pipelines.backfill import history_rows
from pipelines.cli.app import app
from pipelines.settings import load_settings
from pipelines.sources.files import ColumnMapping
from tests.conftest import REPOSITORY
from tests.services.kafka_distribution import distribution
from tests.services.requirements import require
from tests.services.waiting import PATIENCE_SECONDS

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text(encoding="utf-8")
BLOCKS: list[dict[str, Any]] = [
    document for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) for document in yaml.safe_load_all(block)
]
DAGSTER_PAGE = (REPOSITORY / "docs" / "dagster.md").read_text(encoding="utf-8")
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
_TARGETS = {"karmalake": "stream", "karmalake-dagster": "dagster"}
_WORKSPACE = ["--workspace", "/dagster/workspace.yaml"]
POSTGRES = yaml.safe_load(re.findall(r"```yaml\n(storage:.*?)```", DAGSTER_PAGE, re.DOTALL)[0])
_VARIABLE = re.compile(r"\$\{(\w+):\?[^}]+\}")


def filled_in(value: str) -> str:
    """Return a value as Compose interpolates it: each variable is required, and given."""
    return _VARIABLE.sub("secret-of-the-tests", value)


def assert_understood(command: list[str]) -> None:
    """Assert that a karmalake command and its options exist, or that one of Dagster uses our code; runs nothing."""
    if command[0] == "dagster":
        assert command[1:3] + command[-4:] == ["api", "grpc", "--port", "4000", "--module-name", "karmalake.dagster"]
        return
    if command[0] != "karmalake":
        assert command == ["dagster-daemon", "run", *_WORKSPACE]
        return
    context = get_command(app).make_context("karmalake", command[1:], resilient_parsing=True)
    inner = context.command
    arguments = command[1:]
    while hasattr(inner, "commands"):
        inner, arguments = inner.commands[arguments[0]], arguments[1:]
    inner.make_context("karmalake", arguments)


def assert_settings(values: dict[str, str], tmp_path: Path) -> None:
    """Assert that each variable is a setting with a valid value."""
    load_settings({name: filled_in(str(value)) for name, value in values.items()}, tmp_path)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_compose(name: str, tmp_path: Path) -> None:
    """Settings, command, volumes, ports and dependencies exist; it is pinned, and has a health check."""
    service = SERVICES[name]
    assert_settings(service["environment"], tmp_path)
    if service["image"] in _TARGETS:
        assert_understood(service["command"])
        assert service["build"] == {"context": ".", "target": _TARGETS[service["image"]]}
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - of a container
    else:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?", service["image"])
        assert service["healthcheck"]["test"][0] == "CMD"
    assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for other, condition in service.get("depends_on", {}).items():
        needs = "restart" if condition["condition"] == "service_completed_successfully" else "healthcheck"
        assert needs in SERVICES[other]


def test_addresses_of_compose_name_services() -> None:
    """Each host:port in a setting is a service that listens there."""
    values = [str(value) for service in SERVICES.values() for value in service["environment"].values()]
    hosts = {host for value in values for host in re.findall(r"(?:@|^|://)([a-z]+):\d+", value)}
    assert hosts == {"kafka", "redis", "postgres", "localhost"}
    assert "INSIDE://kafka:9092" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


@pytest.mark.jvm
def test_kafka_takes_its_environment(tmp_path: Path) -> None:
    """The tested Kafka release formats a folder with the properties that the image derives from the variables."""
    require("kafka")
    environment = SERVICES["kafka"]["environment"] | {"KAFKA_LOG_DIRS": str(tmp_path / "data")}
    lines = [f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}" for name, value in environment.items()]
    (tmp_path / "server.properties").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["format", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", str(tmp_path / "server.properties")]
    command = distribution().command("kafka.tools.StorageTool", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data" / "meta.properties").exists()


def test_secrets_come_from_the_environment() -> None:
    """The file contains no password, and Compose refuses to start without one."""
    text = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
    passwords = re.findall(
        r"(?:PASSWORD|TOKEN|REDISCLI_AUTH|--requirepass|redis://:|postgres:)[:, \"]*(\$\{|[^\s\"@$]+@)", text
    )
    assert passwords
    assert set(passwords) == {"${"}


def test_the_image_has_the_files_that_it_copies() -> None:
    """Everything that the Dockerfile copies exists, and is not excluded by .dockerignore."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = [word for line in lines for word in line.split()]
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in ignored


def test_the_image_installs_locked_versions() -> None:
    """Every line has a hash, pip requires hashes, and versions are those that the tests run with."""
    whole_lines = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE)
    assert [line.strip() for line in re.findall(r"pip [^&\n]*?\binstall ([^&\n]+)", whole_lines)] == [
        "--require-hashes --requirement requirements-stream.txt",
        "--no-deps --no-build-isolation .",
        "--require-hashes --requirement /dagster/requirements-dagster.txt",
    ]
    tested, stream, dagster = (_pins(REPOSITORY / f"requirements{name}.txt") for name in ("", "-stream", "-dagster"))
    for image in (stream, dagster):
        assert {name: version for name, version in image.items() if tested.get(name, version) != version} == {}
        assert not {"pytest", "pyspark"} & image.keys()
    assert stream.items() <= dagster.items()
    assert {"duckdb", "hatchling", "psycopg"} <= stream.keys()
    assert {"dagster-k8s", "marimo"} <= dagster.keys() - stream.keys()


def _pins(path: Path) -> dict[str, str]:
    """Return the version of each package of a lock file, after asserting that it has hashes."""
    locked = re.split(r"\n(?=[a-z0-9])", path.read_text(encoding="utf-8").partition("\n    ")[2].partition("\n")[2])
    pins = dict(match.groups() for entry in locked if (match := re.match(r"([a-z0-9._-]+)[^=]*==([^ ;\\]+)", entry)))
    assert all("--hash=sha256:" in entry for entry in locked)
    return pins


def test_dagster_keeps_its_runs_where_the_image_says(tmp_path: Path) -> None:
    """With the additions of the Dockerfile, dagster.yaml is valid, and the storage is PostgreSQL, as the page says.

    The driver is the one that tests/assets/test_processes.py runs.
    """
    (added,) = re.findall(r"printf '(.+?)' >> /dagster/dagster.yaml", DOCKERFILE)
    config_text = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")
    (tmp_path / "dagster.yaml").write_text(config_text + added.replace("\\n", "\n"), encoding="utf-8")
    config, _ = dagster_instance_config(str(tmp_path))
    assert {"storage": config["storage"]} == POSTGRES
    url = SERVICES["dagster"]["environment"]["DAGSTER_POSTGRES_URL"]
    (scheme,) = re.findall(r"^\$ export DAGSTER_POSTGRES_URL=(\S+?)://", DAGSTER_PAGE, re.MULTILINE)
    values = next(block for block in BLOCKS if "runLauncher" in block)
    assert url.partition("://")[0] == scheme == values["postgresql"]["postgresqlScheme"]


def test_the_code_location_has_a_name() -> None:
    """It is where the workspace of the page and the daemon looks for it, under the name that `dg` and Helm have."""
    workspace = yaml.safe_load((REPOSITORY / "compose.workspace.yaml").read_text(encoding="utf-8"))
    [server] = [entry["grpc_server"] for entry in workspace["load_from"]]
    for name in ("dagster", "dagster-daemon"):
        environment = SERVICES[name]["environment"]
        assert environment[server["host"]["env"]] in SERVICES
        assert environment[server["port"]["env"]] in SERVICES[environment[server["host"]["env"]]]["command"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["dg"]["project"]
    assert server["location_name"] == project["code_location_name"] == _code_location()["name"]


def test_settings_and_secrets_of_kubernetes(tmp_path: Path) -> None:
    """Each belongs to karmalake or AWS, and every reference of a pod is defined on the page."""
    configs, (secret,) = ([block for block in BLOCKS if block.get("kind") == kind] for kind in ("ConfigMap", "Secret"))
    values = {name: value for config in configs for name, value in config["data"].items()} | secret["stringData"]
    assert_settings(values, tmp_path)
    assert {name for name in values if not name.startswith("KARMALAKE_")} == {"AWS_REGION"}
    location = _code_location()
    assert location["envConfigMaps"] == [{"name": config["metadata"]["name"]} for config in configs]
    assert location["envSecrets"] == [{"name": secret["metadata"]["name"]}]
    assert location["dagsterApiGrpcArgs"] == ["--module-name", "karmalake.dagster"]


def _code_location() -> dict[str, Any]:
    (location,) = next(block for block in BLOCKS if "runLauncher" in block)["dagster-user-deployments"]["deployments"]
    return location


def _containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for block in BLOCKS:
        pod = block.get("spec", {}).get("template", {}).get("spec")
        if pod is not None:
            (container,) = pod["containers"]
            yield block, container


def test_pods_of_kubernetes(tmp_path: Path) -> None:
    """Their commands exist, their variables are settings, their volumes and ports are declared."""
    pods = list(_containers())
    assert len(pods) == 4
    for block, container in pods:
        assert "command" not in container, "it would replace tini"
        assert_understood(container["args"])
        own = {entry["name"]: entry["value"] for entry in container.get("env", []) if "KARMALAKE" in entry["name"]}
        assert_settings(own, tmp_path)
        volumes = [*block["spec"]["template"]["spec"].get("volumes", [])]
        volumes += [claim["metadata"] for claim in block["spec"].get("volumeClaimTemplates", [])]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == {volume["name"] for volume in volumes}
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[name] for name in container if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        labels = block["spec"]["template"].get("metadata", {}).get("labels")
        assert block["spec"].get("selector", {}).get("matchLabels") == labels


def test_the_backfill_of_kubernetes(tmp_path: Path) -> None:
    """Its settings locate the file of a day on a volume of the pods, and as many days share a pod as the asset says."""
    (data,) = (block["data"] for block in BLOCKS if "KARMALAKE_HISTORY_PATH" in block.get("data", {}))
    settings = load_settings(data, tmp_path)
    rows = history_rows(settings)
    assert isinstance(rows, ColumnMapping)
    assert (rows.user_id, dict(rows.metadata)) == ("to", {"rating": "feature", "rater_id": "from"})
    assert settings.history.path is not None
    (mount,) = _code_location()["volumeMounts"]
    assert settings.history.path.startswith(f"{mount['mountPath']}/")
    assert [volume["name"] for volume in _code_location()["volumes"]] == [mount["name"]]
    policy = history.backfill_policy
    assert policy is not None
    assert policy.max_partitions_per_run == 30
    assert re.findall(r"pod(?:s)? (?:per|a) ([a-z ]*?days?)\b", PAGE) == ["thirty days"] * 2


def test_the_pools_of_kubernetes() -> None:
    """The limit of pools is that of dagster.yaml."""
    values = next(block for block in BLOCKS if "runLauncher" in block)
    pools = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"))["concurrency"]["pools"]
    assert values["concurrency"]["pools"] == {
        "granularity": pools["granularity"],
        "defaultLimit": pools["default_limit"],
    }
