"""The API's description, and the pages that are served with it: all from this package, nothing from elsewhere.

Notable choices:
- The description is made from the routes, then completed: problem responses, keys, one schema for each type. It is kept
  in ``openapi/openapi.json``, and a test holds the two equal.
- Swagger UI needs inline styles; its page alone allows them. Scripts come from files here, on every page.
- The pages hold no record: they are open, and ask the API with the key that the reader types.
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

from app.api.openapi_responses import EXAMPLE_RECORD
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import NotFound, RlvoError
from app.sdk.followup import OutcomeDraft, ReviewDraft
from app.sdk.models import AliasDraft
from app.sdk.types import NOTICE, Prediction, Problem

VERSION = "1.0.0"
WEB = Path(__file__).parents[1] / "web"

router = APIRouter(include_in_schema=False)

_TAGS = [
    {"name": "predictions", "description": "Send a study, follow it, read the answer, take it back."},
    {
        "name": "results",
        "description": "What a prediction made: maps, figures, the report, and other forms of the answer.",
    },
    {"name": "follow-up", "description": "What a clinician thought of it, and how the thrombectomy ended."},
    {"name": "models", "description": "Which versions there are, what they need, how good they are."},
    {"name": "service", "description": "Probes. They need no key."},
]
_DESCRIPTION = f"""How likely is this large-vessel occlusion to be refractory to thrombectomy (final stenosis > 50 %,
eTICI 0-2a, or rescue angioplasty or stenting)? Send the CT volumes and the clinical document, get a calibrated
probability, its interval and its reasons.

**{NOTICE}**

Every error is `application/problem+json` (RFC 9457) with a `code` from a fixed list and a `trace_id`; it never repeats
what was sent. Where the service asks for keys, send `Authorization: Bearer <key>`."""
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
    """The OpenAPI 3.1 document of an assembled application."""
    document = get_openapi(
        title="rlvo",
        version=VERSION,
        summary="Refractory large vessel occlusion, predicted before thrombectomy",
        description=_DESCRIPTION,
        routes=app.routes,
        tags=_TAGS,
        separate_input_output_schemas=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    kinds = [
        (kind, "validation") for kind in (ClinicalRecord, Prediction, Problem, ReviewDraft, OutcomeDraft, AliasDraft)
    ]
    _, shared = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted({**components.get("schemas", {}), **shared["$defs"]}.items()))
    components["schemas"]["ClinicalRecord"]["examples"] = [EXAMPLE_RECORD]
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key, as a header"},
    }
    document["security"] = [{"key": []}, {"header": []}, {}]
    return document


def mount(app: FastAPI) -> None:
    """Serves the files of the pages under /static."""
    app.mount("/static", StaticFiles(directory=WEB), name="static")


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def swagger() -> HTMLResponse:
    return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})


@router.get("/")
async def home() -> Response:
    return FileResponse(WEB / "index.html")


@router.get("/predictions/{id}")
async def prediction() -> Response:
    """The shell of one prediction's page; it reads the record itself, with the reader's key."""
    return FileResponse(WEB / "prediction.html")


@router.get("/favicon.ico")
async def icon() -> Response:
    return FileResponse(WEB / "icon.svg", media_type="image/svg+xml")


@router.get("/problems/{code}")
async def problem(code: str) -> Response:
    """What a problem's ``type`` leads to: the code in words."""
    kind = RlvoError.for_code(code)
    if kind.code != code:
        raise NotFound
    return PlainTextResponse(f"{kind.code} ({kind.status})\n\n{kind.title}.\n")
