"""Deployment files use existing settings, commands, addresses and metrics of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app import sdk
from app.api.metrics import Metrics
from app.cli.__main__ import app as command_line
from app.core.config import Settings
from app.database.session import now
from app.database.status import QueueWait
from app.database.workers import Usage, WorkerRecord
from app.dicom.callers import validated_callers
from app.main import openapi_document
from app.sdk.types import Priority

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def within(node: object, key: str) -> Iterator[Any]:
    """Yield every value under ``key``, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from within(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from within(value, key)


def check_settings(environment: dict[str, str]) -> Settings:
    """Check that every name is a setting or an AWS variable, and that every value is valid."""
    own = {name: value for name, value in environment.items() if name.startswith("RLVO_")}
    assert set(environment) - set(own) <= AWS
    fields = {f"RLVO_{name.upper()}": name for name in Settings.model_fields}
    assert set(own) <= set(fields)
    return Settings(**{fields[name]: value for name, value in own.items()})  # type: ignore[arg-type]


def check_command(command: list[str]) -> None:
    assert command[0] == "rlvo"
    registered, rest = get_command(command_line), command[1:]
    while groups := getattr(registered, "commands", None):
        registered, rest = groups[rest[0]], rest[1:]
    options = {name for each in registered.params for name in (*each.opts, *each.secondary_opts)}
    assert set(rest) <= options


# compose --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(:[?-][^}]*)?\}", r"\1", text))
    return document


@pytest.mark.parametrize("name", ["api", "worker", "worker-gpu", "listener"])
def test_compose_uses_existing_commands_and_settings(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    check_command(service["command"])
    settings = check_settings(service["environment"])
    assert settings.database == "postgresql://rlvo:POSTGRES_PASSWORD@database/rlvo"
    assert {settings.storage_url.partition("//")[2].partition("/")[0], "rlvo"} == {"rlvo"}
    assert service["read_only"]


def test_compose_limits_the_memory_of_each_worker_and_names_its_card(compose: dict[str, Any]) -> None:
    workers = {name: each for name, each in compose["services"].items() if each.get("command") == ["rlvo", "worker"]}
    assert set(workers) == {"worker", "worker-gpu"}
    for service in workers.values():
        assert "RLVO_MEMORY_LIMIT_MB" not in service["environment"]
        assert service["deploy"]["resources"]["limits"]["memory"]
    (device,) = workers["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["GPU"]
    assert "count" not in device


def test_compose_names_existing_services_and_volumes(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
    endpoint = Settings(s3_endpoint=services["api"]["environment"]["RLVO_S3_ENDPOINT"]).s3_endpoint
    assert endpoint.startswith("http://s3:")
    assert services["api"]["environment"]["RLVO_DATABASE_URL"].endswith("@database/rlvo")


def test_compose_forwards_from_orthanc_to_the_listener(compose: dict[str, Any]) -> None:
    """A real Orthanc forwards in `tests/dicom/test_listener.py`; here its names are those of the listener."""
    settings = json.loads(compose["configs"]["orthanc"]["content"])
    listener = compose["services"]["listener"]
    given = check_settings(listener["environment"])
    title, host, port = settings["DicomModalities"]["rlvo"]
    assert (title, host, port) == (given.dicom_ae_title, "listener", given.dicom_port)
    assert [each.title for each in validated_callers(given)] == [settings["DicomAet"]]
    assert "SendToModality(instanceId, 'rlvo')" in compose["configs"]["route"]["content"]
    assert "received:/data" in listener["volumes"]
    assert all("orthanc" in compose["services"][name]["profiles"] for name in ("listener", "orthanc"))


# kubernetes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> list[dict[str, Any]]:
    """Every resource that the kustomization names."""
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {"kustomization.yaml", *kustomization["resources"]}
    return [document for file in kustomization["resources"] for document in documents(KUBERNETES / file)]


def test_kubernetes_uses_existing_commands_and_settings(cluster: list[dict[str, Any]]) -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    shared = dict(literal.split("=", 1) for literal in kustomization["configMapGenerator"][0]["literals"])
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


def test_no_service_of_the_cluster_sets_a_setting(cluster: list[dict[str, Any]]) -> None:
    """Kubernetes gives each pod NAME_PORT=tcp://... for each Service; that of `rlvo` would be the setting RLVO_PORT."""
    services = {each["metadata"]["name"] for each in cluster if each["kind"] == "Service"}
    linked = {f"{name.upper().replace('-', '_')}_PORT" for name in services}
    assert linked & {f"RLVO_{name.upper()}" for name in Settings.model_fields} == {"RLVO_PORT"}
    for deployment in (each for each in cluster if each["kind"] == "Deployment"):
        assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_kubernetes_probes_existing_addresses(cluster: list[dict[str, Any]]) -> None:
    probes = [probe["path"] for probe in within(cluster, "httpGet")]
    assert sorted(probes) == ["/livez", "/readyz"]
    assert set(probes) <= set(openapi_document()["paths"])
    (service,) = [each for each in cluster if each["kind"] == "Service"]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in cluster if each["kind"] == "Deployment"]
    assert service["spec"]["selector"] in labels
    claims = {each["metadata"]["name"] for each in cluster if each["kind"] == "PersistentVolumeClaim"}
    assert set(within(cluster, "claimName")) == claims


def test_kustomization_sets_the_version_of_every_image(cluster: list[dict[str, Any]]) -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    versions = {each["name"]: each["newTag"] for each in kustomization["images"]}
    assert versions == dict.fromkeys(within(cluster, "image"), sdk.__version__)


# metrics --------------------------------------------------------------------------------------------------------------


def existing_metrics() -> set[str]:
    worker = WorkerRecord("w", "h", 1, "cuda", ("m@1.0.0",), now(), now(), 1, {}, Usage(1, 2, 3, 4))
    metrics = Metrics()
    metrics.observe_request("GET", "/", 200, 0.1)
    page = metrics.render(
        queued={each: QueueWait(0, 0.0) for each in Priority},
        waiting={"waiting-for-storage": QueueWait(0, 0.0)},
        workers=[worker],
    ).decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    parts = {name: [f"{name}_{part}" for part in ("bucket", "sum", "count")] for name in types}
    return {part for name, kind in types.items() for part in (parts[name] if kind == "histogram" else [name])}


@pytest.mark.parametrize("file", ["grafana.json", "kubernetes/autoscaling.yaml"])
def test_queried_metrics_exist(file: str) -> None:
    path = DEPLOY / file
    document = json.loads(path.read_text()) if path.suffix == ".json" else documents(path)
    queries = [*within(document, "expr"), *([] if path.suffix == ".json" else within(document, "query"))]
    assert queries
    queried = {name for query in queries for name in re.findall(r"rlvo_\w+", query)}
    assert queried <= existing_metrics()


def test_manual_names_existing_metrics_and_settings() -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    metrics = existing_metrics()
    assert set(re.findall(r"\brlvo_\w+", text)) <= metrics | {name.removesuffix("_bucket") for name in metrics}
    assert set(re.findall(r"RLVO_(\w+)", text)) <= {name.upper() for name in Settings.model_fields}


def test_dashboard_shows_every_metric() -> None:
    queries = " ".join(within(json.loads((DEPLOY / "grafana.json").read_text()), "expr"))
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in existing_metrics()}
    missing = {name for name in shown if name not in queries and not name.endswith("_created")}
    assert not missing


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        grid = panel["gridPos"]
        right, bottom = grid["x"] + grid["w"], grid["y"] + grid["h"]
        covered = {(x, y) for x in range(grid["x"], right) for y in range(grid["y"], bottom)}
        assert not cells & covered
        assert right <= 24
        cells |= covered
