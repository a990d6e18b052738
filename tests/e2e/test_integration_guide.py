"""The integration guide: its blocks run one after the other, as a reader runs them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standardwebhooks import WebhookVerificationError

from app.core.egress import EgressClient
from app.database.session import now
from app.database.webhooks import Webhook
from app.worker import webhooks
from tests.receiver import receiving

from .service_process import TIMEOUT_S, RunningService

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "integration.md").read_text()
AS_INSTALLED = "import sys, app.sdk, app.sdk.client; sys.modules['rlvo'] = app.sdk\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_blocks_run_in_their_order(service: RunningService, patient: dict[str, Path], tmp_path: Path) -> None:
    for name in ("ncct", "cta", "clinical"):
        shutil.copy(patient[name], tmp_path)
    key = service.rlvo("keys", "create", "guide").stdout.strip()
    client = blocks("python")[0]
    (tmp_path / "client.py").write_text(AS_INSTALLED + client)
    script = "\n".join(blocks("sh")).replace("http://127.0.0.1:8000", service.url)
    script = script.replace("rlvo_the_key_that_was_printed", key)
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\n{sys.executable} client.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=service.environment | {"PYTHONPATH": str(ROOT)},
        timeout=3 * TIMEOUT_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["status"] == "succeeded"
    for line in (
        r"idempotency-replayed: true",
        r"422 nifti-invalid ",
        r'data: \{"id": "' + answer["id"],
        r"\['RiskAssessment', 'DiagnosticReport', 'Observation', 'Device', 'Provenance'\]",
        r"Research use only\.",
        r"\['rlvo-patient-view'\]",
        r"patient-view: .*Research use only\.",
    ):
        assert re.search(line, run.stdout), line
    assert re.search(r"^[0-9a-f-]{36} ", run.stdout.splitlines()[-1])  # the Python client


def test_webhook_block_verifies_a_message() -> None:
    block: dict[str, object] = {}
    exec(blocks("python")[1], block)
    verify = block["finished_prediction"]
    assert callable(verify)
    with receiving(204) as receiver:
        webhook = Webhook("w-1", "pacs", receiver.url, now(), None, "whsec_" + 32 * "A")
        body, sent = webhooks.test_message(webhook)[1], EgressClient(f"http://127.0.0.1:{receiver.port}")
        assert webhooks.send(sent, webhook, "message-1", body) == (204, "")
    assert verify(webhook.secret, receiver.headers[0], receiver.bodies[0]) == ("webhook.test", "w-1")
    with pytest.raises(WebhookVerificationError):
        verify(webhook.secret, receiver.headers[0], receiver.bodies[0] + b" ")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)[^)]*\)", GUIDE))))
def test_linked_file_exists(target: str) -> None:
    assert (ROOT / "docs" / target).exists()
