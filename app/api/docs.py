"""Serves the OpenAPI document, the Swagger UI and the web pages, all from files of this package.

Design notes:
- The document is made from the routes, then completed with problem responses, keys and one schema per type.
- A committed copy is ``openapi/openapi.json``; a test compares the two.
- Only the Swagger UI page allows inline styles, because it needs them. No page allows inline scripts.
- The pages contain no record, so they need no key; they call the API with the key that the reader types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from app.api.cds_hooks import CdsFeedback, CdsRequest
from app.api.dependencies import Services, ServicesDep
from app.api.login import content_policy
from app.api.openapi_examples import EXAMPLES
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import NotFound, RlvoError
from app.sdk.followup import OutcomeDraft, ReviewDraft
from app.sdk.models import AliasDraft
from app.sdk.problem import Problem
from app.sdk.studies import StudyRoles
from app.sdk.types import NOTICE, Prediction

VERSION = "1.0.0"
WEB = Path(__file__).parents[1] / "web"

router = APIRouter(include_in_schema=False)

_TAGS = [
    {"name": "predictions", "description": "Submit a study, follow its progress, read the result, cancel or erase it."},
    {
        "name": "results",
        "description": "Files of a prediction: maps, figures, the report, and the result as FHIR or CDS Hooks.",
    },
    {
        "name": "studies",
        "description": "DICOM studies that scanners and archives have sent: series, roles, and their predictions.",
    },
    {"name": "cds", "description": "A CDS service (CDS Hooks 2.0) with the hook `patient-view`."},
    {"name": "follow-up", "description": "Reviews by clinicians, and the outcome of the thrombectomy."},
    {
        "name": "models",
        "description": "Model versions, the inputs that they need, their model cards, and their aliases.",
    },
    {"name": "service", "description": "Health probes and metrics, which need no key, and who the caller is."},
]
_TYPES = (
    ClinicalRecord,
    Prediction,
    Problem,
    ReviewDraft,
    OutcomeDraft,
    AliasDraft,
    CdsRequest,
    CdsFeedback,
    StudyRoles,
)
_DESCRIPTION = f"""Predicts whether a large-vessel occlusion of the anterior circulation is refractory to thrombectomy:
final stenosis > 50 %, eTICI 0-2a, or rescue angioplasty or stenting. Send the CT volumes and the clinical document.
The response has a calibrated probability, the spread of the networks and an explanation.

**{NOTICE}**

Every error is `application/problem+json` (RFC 9457) with a `code` from a fixed list and a `trace_id`. It never repeats
submitted values. If the service requires keys, send `Authorization: Bearer <key>`."""
_DOCS_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_DOCS = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>rlvo API</title>
  <link rel="stylesheet" href="/static/vendor/swagger-ui/swagger-ui.css">
  <link rel="icon" href="/static/icon.svg" type="image/svg+xml">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/static/vendor/swagger-ui/swagger-ui-bundle.js"></script>
  <script src="/static/js/docs.js"></script>
</body>
</html>
"""


def describe(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of an application with its routes."""
    document = get_openapi(
        title="rlvo",
        version=VERSION,
        summary="Prediction of refractory large-vessel occlusion before thrombectomy",
        description=_DESCRIPTION,
        routes=app.routes,
        tags=_TAGS,
        separate_input_output_schemas=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    types = [(each, "validation") for each in _TYPES]
    _, shared = models_json_schema(types, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted({**components.get("schemas", {}), **shared["$defs"]}.items()))
    for name, example in EXAMPLES.items():
        components["schemas"][name]["examples"] = [example]
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in a header"},
    }
    document["security"] = [{"key": []}, {"header": []}, {}]
    return document


def mount(app: FastAPI) -> None:
    """Serves the files of the web pages under /static."""
    app.mount("/static", StaticFiles(directory=WEB), name="static")


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """Returns the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def swagger() -> HTMLResponse:
    """Returns the Swagger UI page."""
    return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})


@router.get("/")
async def home(services: ServicesDep) -> Response:
    """Returns the start page."""
    return _page("index.html", services)


@router.get("/predictions/{id}")
async def prediction(services: ServicesDep) -> Response:
    """Returns the page of one prediction, without the record; its script reads that with the reader's key."""
    return _page("prediction.html", services)


def _page(name: str, services: Services) -> Response:
    return FileResponse(WEB / name, headers={"Content-Security-Policy": content_policy(services.settings)})


@router.get("/favicon.ico")
async def icon() -> Response:
    """Returns the icon of the pages."""
    return FileResponse(WEB / "icon.svg", media_type="image/svg+xml")


@router.get("/problems/{code}")
async def problem(code: str) -> Response:
    """Describes a problem code; the ``type`` member of a problem document is this address."""
    error = RlvoError.for_code(code)
    if error.code != code:
        raise NotFound
    return PlainTextResponse(f"{error.code} ({error.status})\n\n{error.title}.\n")
