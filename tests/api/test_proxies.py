"""The proxies of deploy/ with TLS: real nginx and real Caddy in front of the service."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.database import api_keys
from app.database.api_keys import Scope
from tests.api.conftest import volume
from tests.api.server import Server
from tests.deployment import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = """daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
CADDY = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"


@dataclass
class Proxy:
    url: str
    folder: Path
    headers: dict[str, str]

    @property
    def certificate(self) -> Path:
        return self.folder / "rlvo.pem"

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=self.url, verify=context, headers=self.headers, timeout=30, trust_env=False)


def write_certificate(folder: Path) -> None:
    """A certificate of localhost and its key."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    start = datetime.now(UTC) - timedelta(hours=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + timedelta(days=2))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "rlvo.pem").write_bytes(pem)
    private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "rlvo.key").write_bytes(key.private_bytes(*private))


def adapted(name: str, folder: Path, **changes: str) -> str:
    """An example with the paths and ports of this test; each of them must stand in the example once."""
    text = (DEPLOY / name).read_text()
    changes |= {"/etc/ssl/rlvo.pem": f"{folder}/rlvo.pem", "/etc/ssl/rlvo.key": f"{folder}/rlvo.key"}
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def nginx_command(folder: Path, port: int, server: Server) -> list[str]:
    site = adapted(
        "nginx.conf",
        folder,
        **{
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "proxy_pass http://127.0.0.1:8000": f"proxy_pass {server.url}",
            "/var/log/nginx/rlvo.log": f"{folder}/access.log",
        },
    )
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def caddy_command(folder: Path, port: int, server: Server) -> list[str]:
    site = adapted(
        "Caddyfile",
        folder,
        **{
            "rlvo.clinic.example {": f"localhost:{port} {{",
            "reverse_proxy 127.0.0.1:8000": f"reverse_proxy {server.url.removeprefix('http://')}",
        },
    )
    (folder / "Caddyfile").write_text(CADDY + site)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def listening(command: list[str], folder: Path, port: int) -> Iterator[None]:
    environment = os.environ | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + 30
            while True:
                assert process.poll() is None, (folder / "log").read_text()
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < end
                time.sleep(0.05)
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server_with_keys: Server
) -> Iterator[Proxy]:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"needs Debian's package {name}")
    folder, port = tmp_path_factory.mktemp(name), free_port()
    write_certificate(folder)
    database = server_with_keys.database()
    with database.session() as session:
        key = api_keys.create(session, name, [Scope.PREDICT, Scope.READ])
    database.close()
    command = {"nginx": nginx_command, "caddy": caddy_command}[name](folder, port, server_with_keys)
    with listening(command, folder, port):
        yield Proxy(f"https://localhost:{port}", folder, {"Authorization": f"Bearer {key}"})


def submitted(client: httpx.Client) -> str:
    files = {"cta": ("x.nii.gz", volume(), "application/octet-stream"), "subject": (None, b"S-SECRET")}
    sent = client.post("/v1/predictions", files=files, headers={"Prefer": "respond-async"})
    assert sent.status_code == 202, sent.text
    return sent.headers["location"]


def test_study_is_accepted_and_followed_over_tls(proxy: Proxy) -> None:
    with proxy.client() as client:
        location = submitted(client)
        started = time.monotonic()
        assert client.get(f"{location}?wait=1").json()["status"] == "queued"
        assert time.monotonic() - started >= 1
        assert client.get("/cds-services").status_code == 200
        assert client.get("/v1/predictions?subject=S-SECRET").json()["items"]
    if (log := proxy.folder / "access.log").exists():
        assert "/v1/predictions" in log.read_text()
        assert "S-SECRET" not in log.read_text()


def test_first_event_arrives_while_the_stream_is_open(proxy: Proxy) -> None:
    with proxy.client() as client, client.stream("GET", f"{submitted(client)}/events", timeout=10) as events:
        assert next(events.iter_lines()) == "event: state"


def test_request_without_a_key_is_refused(proxy: Proxy) -> None:
    with proxy.client() as client:
        refused = client.get("/v1/predictions", headers={"Authorization": ""})
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


def test_text_of_a_refusal_arrives_before_the_upload_ends(proxy: Proxy, tmp_path: Path) -> None:
    """The body is larger than the default limit of nginx, 1 MiB, and is refused by its first bytes."""
    (tmp_path / "wrong.nii").write_bytes(b"this is no volume" * 1_500_000)
    command = ["curl", "--silent", "--show-error", "--cacert", str(proxy.certificate), "--max-time", "60"]
    command += ["--header", f"Authorization: {proxy.headers['Authorization']}", "--form", f"cta=@{tmp_path}/wrong.nii"]
    run = subprocess.run([*command, f"{proxy.url}/v1/predictions"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert '"code":"nifti-invalid"' in run.stdout.replace(" ", "")
