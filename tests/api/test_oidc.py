"""Tokens of a real issuer on loopback: valid tokens are accepted with their scopes, all others give 401."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.api import oidc
from app.core.config import Settings
from tests.api.conftest import RunningService, running, volume
from tests.api.responses import problem

pytestmark = pytest.mark.anyio


@dataclass
class Issuer:
    """An identity provider: its key, its documents, and the number of requests for its keys."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    key_id: str = "one"
    key_requests: int = 0
    down: bool = False

    def document(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            self.key_requests += 1
            public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
            return {"keys": [public | {"kid": self.key_id, "use": "sig", "alg": "RS256"}]}
        return None

    def claims(self, **changes: Any) -> dict[str, Any]:
        good = {
            "iss": self.url,
            "aud": "rlvo",
            "sub": "dr-1",
            "exp": time.time() + 60,
            "scope": "openid predict rlvo:read",
            "tenant": "clinic",
        }
        return {name: value for name, value in (good | changes).items() if value is not None}

    def token(self, *, key: Any = None, algorithm: str = "RS256", kid: str | None = None, **changes: Any) -> str:
        head = {"kid": self.key_id if kid is None else kid}
        return jwt.encode(self.claims(**changes), key or self.key, algorithm=algorithm, headers=head)


@contextmanager
def run_issuer() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = None if issuer.down else issuer.document(self.path)
            self.send_response(503 if document is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with run_issuer() as issuer:
        yield issuer


def with_issuer(settings: Settings, issuer: Issuer) -> Settings:
    return settings.model_copy(update={"oidc_issuer": issuer.url})


async def list_predictions(service: RunningService, token: str) -> httpx.Response:
    return await service.http.get("/v1/predictions", headers={"Authorization": f"Bearer {token}"})


async def test_valid_token_is_accepted_for_its_tenant(settings: Settings, issuer: Issuer) -> None:
    async with running(with_issuer(settings, issuer)) as service:
        assert problem(await service.http.get("/v1/predictions")) == (401, "unauthenticated")
        bearer = {"Authorization": f"Bearer {issuer.token()}"}
        sent = await service.http.post(
            "/v1/predictions", headers=bearer | {"Prefer": "respond-async"}, files={"cta": volume()}
        )
        assert sent.status_code == 202, sent.text
        assert len((await list_predictions(service, issuer.token(sub="dr-2"))).json()["items"]) == 1
        assert (await list_predictions(service, issuer.token(tenant="elsewhere"))).json()["items"] == []
        assert (await list_predictions(service, issuer.token(tenant=None))).json()["items"] == []
        assert issuer.key_requests == 1


async def test_token_allows_only_the_calls_of_its_scopes(settings: Settings, issuer: Issuer) -> None:
    async with running(with_issuer(settings, issuer)) as service:
        for scopes in ({"scope": "predict"}, {"scope": "read-all admin"}, {"scope": None}, {"scope": 7}):
            assert problem(await list_predictions(service, issuer.token(**scopes))) == (403, "insufficient-scope")
        assert (await list_predictions(service, issuer.token(scope=None, scp=["read"]))).status_code == 200


def _unsigned(issuer: Issuer) -> str:
    return jwt.encode(issuer.claims(), None, algorithm="none", headers={"kid": issuer.key_id})


def _signed_with_the_public_key(issuer: Issuer) -> str:
    """Algorithm confusion: HS256 with the public key as its secret."""
    import hashlib
    import hmac

    public = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [{"alg": "HS256", "typ": "JWT", "kid": issuer.key_id}, issuer.claims()]
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.new(public, text, hashlib.sha256).digest()).rstrip(b"=")
    return (text + b"." + signature).decode()


BAD: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda issuer: issuer.token(exp=time.time() - 3600),
    "not yet": lambda issuer: issuer.token(nbf=time.time() + 3600),
    "of another issuer": lambda issuer: issuer.token(iss="https://elsewhere"),
    "for another audience": lambda issuer: issuer.token(aud="billing"),
    "without an expiry": lambda issuer: issuer.token(exp=None),
    "without a subject": lambda issuer: issuer.token(sub=None),
    "without an audience": lambda issuer: issuer.token(aud=None),
    "signed by another": lambda issuer: issuer.token(key=rsa.generate_private_key(65537, 2048)),
    "of an unknown key": lambda issuer: issuer.token(kid="other"),
    "with a path for a key": lambda issuer: issuer.token(kid="../../etc/passwd"),
    "by another algorithm": lambda issuer: issuer.token(algorithm="RS512"),
    "by a curve": lambda issuer: issuer.token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    "unsigned": _unsigned,
    "signed with the public key": _signed_with_the_public_key,
    "cut": lambda issuer: issuer.token()[:-4],
    "three plain words": lambda issuer: "one.two.three",
    "nothing in three parts": lambda issuer: "e30.e30.e30",
}


async def test_invalid_token_gives_401(settings: Settings, issuer: Issuer) -> None:
    async with running(with_issuer(settings, issuer)) as service:
        for kind, make in BAD.items():
            token = make(issuer)
            answer = await list_predictions(service, token)
            assert problem(answer) == (401, "unauthenticated"), kind
            assert token not in answer.text
        assert (await list_predictions(service, issuer.token())).status_code == 200


async def test_unknown_keys_do_not_flood_the_provider(settings: Settings, issuer: Issuer) -> None:
    async with running(with_issuer(settings, issuer)) as service:
        for number in range(30):
            await list_predictions(service, issuer.token(kid=f"k{number}"))
        assert issuer.key_requests == 1


async def test_known_keys_stay_valid_while_the_provider_is_down(
    settings: Settings, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_RETRY_SECONDS", 0.0)
    async with running(with_issuer(settings, issuer)) as service:
        issuer.down = True
        answer = await list_predictions(service, issuer.token())
        assert problem(answer) == (503, "identity-unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        issuer.down = False
        assert (await list_predictions(service, issuer.token())).status_code == 200
        issuer.down = True
        monkeypatch.setattr(oidc, "_REFRESH_SECONDS", 0.0)
        assert (await list_predictions(service, issuer.token())).status_code == 200  # the keys are cached


async def test_changed_provider_key_is_fetched(
    settings: Settings, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_RETRY_SECONDS", 0.0)
    async with running(with_issuer(settings, issuer)) as service:
        old = issuer.token()
        assert (await list_predictions(service, old)).status_code == 200
        issuer.key, issuer.key_id = rsa.generate_private_key(65537, 2048), "two"
        assert (await list_predictions(service, issuer.token())).status_code == 200
        assert problem(await list_predictions(service, old)) == (401, "unauthenticated")


async def test_unusual_subject_names_are_accepted(settings: Settings, issuer: Issuer) -> None:
    async with running(with_issuer(settings, issuer)) as service:
        for subject in ("a" * 500, "Ünï cødé", "\0", "a b"):
            assert (await list_predictions(service, issuer.token(sub=subject, tenant=subject))).status_code == 200
