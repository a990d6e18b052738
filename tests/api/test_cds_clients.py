"""Tokens of CDS clients (CDS Hooks 2.0, "Trusting CDS Clients")."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app.api.cds_clients import CdsClientVerifier
from app.core.config import Settings
from app.database.api_keys import Scope
from app.sdk.errors import Unauthenticated
from tests.api.conftest import running, settings_in
from tests.api.responses import problem

URL = "https://rlvo.clinic.example"
PATH = "/cds-services/rlvo-patient-view"
ISSUER = "https://records.clinic.example/"
KEY = ec.generate_private_key(ec.SECP384R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if algorithm.startswith("ES") else jwt.algorithms.RSAAlgorithm
    public: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    return {**public, "kid": kid, "alg": algorithm, "use": "sig"}


CLIENT = {"iss": ISSUER, "tenant": "pacs", "keys": [jwk(KEY, "one", "ES384"), jwk(RSA_KEY, "two", "RS384")]}


def token(key: Any = KEY, algorithm: str = "ES384", kid: str = "one", **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": URL + PATH, "iat": now, "exp": now + 300, "jti": str(uuid4())} | changes
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(present, key, algorithm, headers={"kid": kid})


def file_of(folder: Path, *clients: dict[str, Any]) -> Path:
    path = folder / "clients.json"
    path.write_text(json.dumps({"clients": clients or [CLIENT]}))
    return path


@pytest.fixture
def verifier(tmp_path: Path) -> CdsClientVerifier:
    return CdsClientVerifier(file_of(tmp_path), f"{URL}/")


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"key": RSA_KEY, "algorithm": "RS384", "kid": "two"},
        {"aud": ["https://x", URL + PATH]},
        {"exp": time.time() + 3500},
    ],
)
def test_valid_token_reads_the_predictions_of_its_tenant(verifier: CdsClientVerifier, sent: dict[str, Any]) -> None:
    caller = verifier.authenticate(token(**sent), PATH)
    assert (caller.name, caller.tenant, caller.scopes) == (ISSUER, "pacs", {Scope.READ})


@pytest.mark.parametrize(
    "sent",
    [
        {"aud": f"{URL}/cds-services"},
        {"aud": "https://elsewhere.example" + PATH},
        {"iss": "https://other.example"},
        {"exp": time.time() - 60},
        {"exp": time.time() + 7200},
        {"iat": time.time() + 600},
        {"kid": "unknown"},
        {"kid": "two"},  # the key of another kid
        {"key": ec.generate_private_key(ec.SECP384R1())},
        {"key": "a secret that is shared" * 2, "algorithm": "HS256"},
        {"key": "", "algorithm": "none"},
        *({name: None} for name in ("iss", "aud", "exp", "iat", "jti")),
    ],
)
def test_other_token_is_refused(verifier: CdsClientVerifier, sent: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated, match="known CDS client"):
        verifier.authenticate(token(**sent), PATH)


def test_token_is_accepted_once(verifier: CdsClientVerifier) -> None:
    sent = token(jti="one")
    verifier.authenticate(sent, PATH)
    with pytest.raises(Unauthenticated):
        verifier.authenticate(sent, PATH)
    with pytest.raises(Unauthenticated):
        verifier.authenticate(token(jti="one"), PATH)
    verifier.authenticate(token(jti="two"), PATH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid"),
        ('{"clients": []}', "not valid at `clients`"),
        (
            json.dumps({"clients": [CLIENT | {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"}]}]}),
            "kty",
        ),
        (json.dumps({"clients": [CLIENT | {"keys": [{"kty": "EC", "kid": "a", "alg": "none"}]}]}), "alg"),
        (
            json.dumps({"clients": [CLIENT | {"keys": [{"kty": "EC", "kid": "a", "alg": "ES384"}]}]}),
            "not a JSON Web Key",
        ),
        (json.dumps({"clients": [CLIENT | {"keys": [jwk(KEY, "a", "ES384") | {"d": "SECRET"}]}]}), "private key"),
        (json.dumps({"clients": [CLIENT | {"jku": "https://x"}]}), "jku"),
        (json.dumps({"clients": [CLIENT, CLIENT | {"tenant": "another"}]}), "twice"),
        (json.dumps({"clients": [CLIENT | {"keys": [jwk(KEY, "a", "ES384")] * 2}]}), "two keys `a`"),
    ],
    # not of the content: its key is drawn in each process, and all must collect the same tests
    ids=[
        "empty",
        "no client",
        "a secret",
        "no algorithm",
        "no coordinates",
        "a private key",
        "a link to keys",
        "two tenants",
        "two keys",
    ],
)
def test_unusable_file_is_refused_at_the_start(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "clients.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        CdsClientVerifier(path, URL)
    assert "SECRET" not in str(refused.value)
    assert "c2VjcmV0" not in str(refused.value)


def test_absent_file_and_unknown_address_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        CdsClientVerifier(tmp_path / "absent.json", URL)
    with pytest.raises(ValueError, match="RLVO_PUBLIC_URL"):
        CdsClientVerifier(file_of(tmp_path), "")


@pytest.mark.anyio
async def test_token_is_valid_at_the_cds_service_only(tmp_path: Path, model_store: Path) -> None:
    changes = {"auth": "keys", "public_url": URL, "cds_clients": str(file_of(tmp_path))}
    settings = Settings(**settings_in(tmp_path / "data", model_store).model_dump() | changes)
    context = {"userId": "Practitioner/1", "patientId": "S-1"}
    document = {"hook": "patient-view", "hookInstance": str(uuid4()), "context": context}
    async with running(settings) as service:

        async def post(path: str, sent: str) -> Any:
            return await service.http.post(path, json=document, headers={"Authorization": f"Bearer {sent}"})

        used = token()
        assert (await post(PATH, used)).json() == {"cards": []}
        assert problem(await post(PATH, used)) == (401, "unauthenticated")
        assert problem(await post("/v1/predictions", token(aud=f"{URL}/v1/predictions"))) == (401, "unauthenticated")
        listing = {"Authorization": f"Bearer {token(aud=f'{URL}/v1/predictions')}"}
        assert problem(await service.http.get("/v1/predictions", headers=listing)) == (401, "unauthenticated")
        assert problem(await post(f"{PATH}/feedback", token(aud=f"{URL}{PATH}/feedback"))) == (422, "invalid-request")
