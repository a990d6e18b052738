"""Models, probes, metrics, pages, and the OpenAPI document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest

from app.main import openapi_document
from app.network.architecture import Fusion
from app.sdk.errors import RlvoError
from app.sdk.types import ModelInfo, ModelVersionInfo
from tests.api.conftest import RunningService, running, settings_in
from tests.factory import VARIABLES, tiny_version
from tests.inference.test_own_variables import OWN

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def test_the_api_process_never_loads_torch() -> None:
    program = "import app.main, sys; sys.exit(bool({'torch', 'nibabel', 'scipy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# models ---------------------------------------------------------------------------------------------------------------


async def test_models_are_listed_with_their_inputs(service: RunningService) -> None:
    (model,) = [ModelInfo.model_validate(each) for each in (await service.http.get("/v1/models")).json()]
    assert (model.name, model.aliases) == ("tiny", {"champion": "1.0.0"})
    (version,) = model.versions
    assert (version.required_inputs, version.optional_inputs) == (["cta"], ["ncct", "tmax", "cbf", "ctp"])
    assert version.default
    assert (version.aliases, version.synthetic, version.ready, version.device) == (["champion"], True, False, None)
    assert (await service.http.get("/v1/models/tiny")).json() == model.model_dump(mode="json")
    service.worker.heartbeat("tiny@1.0.0")
    for path in ("1.0.0", "champion"):
        read = ModelVersionInfo.model_validate((await service.http.get(f"/v1/models/tiny/versions/{path}")).json())
        assert (read.ready, read.device) == (True, "cpu")


async def test_model_card_is_served_as_markdown(shared_service: RunningService) -> None:
    answer = await shared_service.http.get("/v1/models/tiny/versions/1.0.0/card")
    assert (answer.headers["content-type"], answer.text) == (
        "text/markdown; charset=utf-8",
        "# A tiny version for tests\n",
    )


async def test_schema_of_a_version_has_only_its_fields(shared_service: RunningService) -> None:
    schema = (await shared_service.http.get("/v1/models/tiny/versions/1.0.0/clinical-schema")).json()
    jsonschema_rs.meta.validate(schema)
    assert set(schema["properties"]) == {
        "age",
        "atrial_fibrillation",
        "nihss",
        "smoking",
        "systolic_bp",
        "diastolic_bp",
        "occlusion_side",
        "perfusion",
    }
    assert list(schema["$defs"]["PerfusionScalars"]["properties"]) == ["core_ml", "software"]
    assert schema["properties"]["age"]["unit"] == "years"
    jsonschema_rs.validate(schema, {"age": 71, "perfusion": {"core_ml": 3}})
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {"age": 17})


async def test_schema_of_a_version_has_the_own_variables_that_it_reads(tmp_path: Path) -> None:
    for version, fusion in (("1.0.0", Fusion.DAFT), ("1.1.0", Fusion.NONE)):  # a network without fusion reads no record
        tiny_version(tmp_path / "models", version=version, variables=(*VARIABLES, *OWN), fusion=fusion)
    async with running(settings_in(tmp_path, tmp_path / "models")) as service:
        read, unread = [
            (await service.http.get(f"/v1/models/tiny/versions/{version}/clinical-schema")).json()
            for version in ("1.0.0", "1.1.0")
        ]
    jsonschema_rs.meta.validate(read)
    assert list(read["properties"]["own"]["properties"]) == ["ddimer", "pacemaker", "grade"]
    assert "own" not in unread["properties"]
    for right, values in ((True, {"ddimer": 5, "pacemaker": True, "grade": "mild"}), (False, {"ddimer": -1})):
        assert jsonschema_rs.is_valid(read, {"age": 71, "own": values}) is right


async def test_the_whole_schema_refuses_unknown_fields(shared_service: RunningService) -> None:
    schema = (await shared_service.http.get("/v1/schema/clinical")).json()
    jsonschema_rs.meta.validate(schema)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {"agee": 17})


# probes ---------------------------------------------------------------------------------------------------------------


async def test_readiness_needs_a_worker_with_the_default_model(service: RunningService) -> None:
    async def worker() -> tuple[int, str]:
        answer = await service.http.get("/readyz")
        return answer.status_code, answer.json()["checks"]["worker"]

    assert await worker() == (503, "no live worker")
    service.worker.heartbeat()
    assert await worker() == (503, "the default model is being loaded")
    service.worker.heartbeat("tiny@1.0.0")
    assert await worker() == (200, "ok")
    service.services.drain()
    assert (await service.http.get("/readyz")).json()["checks"]["service"] == "draining"
    assert (await service.http.get("/livez")).status_code == 200


async def test_metrics_count_requests_by_route_and_stages_once(service: RunningService) -> None:
    sent = [(await service.submit()).json()["id"] for _ in range(2)]
    await service.http.get(f"/v1/predictions/{sent[0]}")
    waiting = (await service.http.get("/metrics")).text
    assert 'rlvo_queue_depth{priority="acute"} 2.0' in waiting
    service.worker.succeed(sent[0])
    service.worker.fail(sent[1])
    for _ in range(2):
        text = (await service.http.get("/metrics")).text
    assert 'rlvo_queue_depth{priority="acute"} 0.0' in text
    assert 'rlvo_predictions_total{status="succeeded"} 1.0' in text
    assert 'rlvo_predictions_total{status="failed"} 1.0' in text
    assert 'rlvo_stage_seconds_sum{stage="prepare"} 1.1' in text
    assert 'rlvo_stage_seconds_count{stage="prepare"} 1.0' in text
    assert 'rlvo_http_request_seconds_count{method="GET",route="/v1/predictions/{id}",status="200"} 1.0' in text
    assert "rlvo_upload_bytes_total 3584.0" in text
    assert sent[0] not in text


# OpenAPI document -----------------------------------------------------------------------------------------------------


def test_committed_openapi_document_is_current() -> None:
    committed = (ROOT / "openapi" / "openapi.json").read_text()
    assert committed == json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n", "run `rlvo openapi`"


def test_openapi_volumes_are_files_and_errors_are_problems() -> None:
    document = openapi_document()
    assert document["openapi"].startswith("3.1")
    form = document["paths"]["/v1/predictions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for name in ("ncct", "cta", "vessels", "tmax", "cbf", "cbv", "mtt", "ctp"):
        assert {"type": "string", "format": "binary"}.items() <= form["properties"][name].items()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if path.startswith("/v1") and int(status) >= 400:
                    (media,) = answer["content"].items()
                    assert media[0] == "application/problem+json"
                    for code, example in media[1]["examples"].items():
                        assert RlvoError.for_code(code).status == int(status) == example["value"]["status"]


async def test_pages_load_only_local_files(shared_service: RunningService) -> None:
    for path in ("/", "/docs", "/predictions/x"):
        answer = await shared_service.http.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "//" not in answer.text.replace("<!--", "").replace("http://www.w3.org", "")
        for source in [part.split('"')[0] for part in answer.text.split('src="')[1:]]:
            assert (await shared_service.http.get(source)).status_code == 200
    assert (await shared_service.http.get("/openapi.json")).json() == openapi_document()
