"""What is deployed fits the code: settings that exist and are valid, commands, addresses, metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.api.metrics import Metrics
from app.cli.__main__ import app as command_line
from app.core.config import Settings
from app.database.session import now
from app.database.status import Waiting
from app.database.workers import Usage, WorkerRecord
from app.main import openapi_document
from app.sdk.types import Priority

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def within(node: object, key: str) -> Iterator[Any]:
    """Every value under ``key``, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from within(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from within(value, key)


def check_settings(environment: dict[str, str]) -> Settings:
    """Every name is a setting or one of AWS', and every value one that it takes."""
    ours = {name: value for name, value in environment.items() if name.startswith("RLVO_")}
    assert set(environment) - set(ours) <= AWS
    fields = {f"RLVO_{name.upper()}": name for name in Settings.model_fields}
    assert set(ours) <= set(fields)
    return Settings(**{fields[name]: value for name, value in ours.items()})  # type: ignore[arg-type]


def check_command(command: list[str]) -> None:
    assert command[0] == "rlvo"
    known = get_command(command_line).commands[command[1]]  # type: ignore[attr-defined]
    options = {word for each in known.params for word in (*each.opts, *each.secondary_opts)}
    assert set(command[2:]) <= options


# compose --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", r"\1", text))
    return found


@pytest.mark.parametrize("name", ["api", "worker", "worker-gpu"])
def test_compose_runs_our_commands_with_our_settings(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    check_command(service["command"])
    settings = check_settings(service["environment"])
    assert settings.database == "postgresql://rlvo:POSTGRES_PASSWORD@database/rlvo"
    assert {settings.storage_url.partition("//")[2].partition("/")[0], "rlvo"} == {"rlvo"}
    assert service["read_only"]


def test_compose_names_only_what_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
    endpoint = Settings(s3_endpoint=services["api"]["environment"]["RLVO_S3_ENDPOINT"]).s3_endpoint
    assert endpoint.startswith("http://s3:")
    assert services["api"]["environment"]["RLVO_DATABASE_URL"].endswith("@database/rlvo")


# kubernetes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> list[dict[str, Any]]:
    """Every resource that the kustomization names."""
    (whole,) = documents(KUBERNETES / "kustomization.yaml")
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {"kustomization.yaml", *whole["resources"]}
    return [document for file in whole["resources"] for document in documents(KUBERNETES / file)]


def test_kubernetes_runs_our_commands_with_our_settings(cluster: list[dict[str, Any]]) -> None:
    (whole,) = documents(KUBERNETES / "kustomization.yaml")
    shared = dict(literal.split("=", 1) for literal in whole["configMapGenerator"][0]["literals"])
    deployments = [each for each in cluster if each["kind"] == "Deployment"]
    assert {each["metadata"]["name"] for each in deployments} == {"api", "worker", "worker-gpu"}
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        check_command(container["command"])
        settings = check_settings(shared | {each["name"]: each["value"] for each in container.get("env", [])})
        mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert mounted[str(settings.model_store)] == "models"
        assert mounted[str(settings.data_dir)] == "data"
        assert set(mounted.values()) == {each["name"] for each in pod["volumes"]}
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
        assert pod["terminationGracePeriodSeconds"] > 25


def test_kubernetes_asks_addresses_that_are_there(cluster: list[dict[str, Any]]) -> None:
    probes = [probe["path"] for probe in within(cluster, "httpGet")]
    assert sorted(probes) == ["/livez", "/readyz"]
    assert set(probes) <= set(openapi_document()["paths"])
    (service,) = [each for each in cluster if each["kind"] == "Service"]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in cluster if each["kind"] == "Deployment"]
    assert service["spec"]["selector"] in labels
    claims = {each["metadata"]["name"] for each in cluster if each["kind"] == "PersistentVolumeClaim"}
    assert set(within(cluster, "claimName")) == claims


# metrics --------------------------------------------------------------------------------------------------------------


def metrics_there_are() -> set[str]:
    worker = WorkerRecord("w", "h", 1, "cuda", ("m@1.0.0",), now(), now(), 1, {}, Usage(1, 2, 3, 4))
    metrics = Metrics()
    metrics.request("GET", "/", 200, 0.1)
    page = metrics.page(waiting={each: Waiting(0, 0.0) for each in Priority}, workers=[worker]).decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    parts = {name: [f"{name}_{part}" for part in ("bucket", "sum", "count")] for name in types}
    return {part for name, kind in types.items() for part in (parts[name] if kind == "histogram" else [name])}


@pytest.mark.parametrize("file", ["grafana.json", "kubernetes/autoscaling.yaml"])
def test_every_metric_that_is_asked_for_is_there(file: str) -> None:
    path = DEPLOY / file
    document = json.loads(path.read_text()) if path.suffix == ".json" else documents(path)
    queries = [*within(document, "expr"), *([] if path.suffix == ".json" else within(document, "query"))]
    assert queries
    asked = {name for query in queries for name in re.findall(r"rlvo_\w+", query)}
    assert asked <= metrics_there_are()


def test_the_manual_speaks_of_what_there_is() -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    spoken = re.findall(r"\brlvo ((?:models |keys |db |audit )?[a-z]+)(?= |`|\n)", " ".join(code(text)))
    assert len(spoken) > 10
    for words in spoken:
        here: Any = get_command(command_line)
        for word in words.split():
            here = here.commands[word]
    assert set(re.findall(r"\brlvo_\w+", text)) <= metrics_there_are() | {
        name.removesuffix("_bucket") for name in metrics_there_are()
    }
    assert set(re.findall(r"RLVO_(\w+)", text)) <= {name.upper() for name in Settings.model_fields}


def code(text: str) -> list[str]:
    """What stands in backticks, and the lines of shell blocks without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [*spans, *(line.partition("#")[0] for block in blocks for line in block.splitlines())]


def test_the_dashboard_shows_every_metric() -> None:
    queries = " ".join(within(json.loads((DEPLOY / "grafana.json").read_text()), "expr"))
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in metrics_there_are()}
    missing = {name for name in shown if name not in queries and not name.endswith("_created")}
    assert not missing


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & mine
        assert at["x"] + at["w"] <= 24
        cells |= mine
