"""An API process of a deployment and an HTTP client of it."""

from __future__ import annotations

import httpx

from app.sdk.types import Prediction, Status
from tests.deployment import Deployment, free_port, wait
from tests.study import volume_bytes

STUDY = volume_bytes()
PATIENCE = 180.0


class ApiClient:
    """An API process and an HTTP client of it."""

    def __init__(self, deployment: Deployment, **settings: str) -> None:
        port = free_port()
        deployment.start_api(port, **settings)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        wait(self.alive, PATIENCE)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def alive(self) -> bool:
        try:
            return self.http.get("/livez").is_success
        except httpx.TransportError:
            return False

    def submit(self, key: str | None = None, content: bytes = STUDY) -> httpx.Response:
        headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": key} if key else {})
        return self.http.post(
            "/v1/predictions", files={"cta": ("cta.nii.gz", content)}, data={"explain": "false"}, headers=headers
        )

    def read(self, prediction_id: str) -> Prediction:
        return Prediction.model_validate(self.http.get(f"/v1/predictions/{prediction_id}").json())

    def expect_success(self, answer: httpx.Response) -> None:
        assert answer.status_code in (200, 202), answer.text
        prediction_id = answer.json()["id"]
        wait(lambda: self.read(prediction_id).status.finished, PATIENCE)
        finished = self.read(prediction_id)
        assert finished.status is Status.SUCCEEDED, finished.error
