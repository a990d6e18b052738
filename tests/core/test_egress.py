"""What may be called, and what is never called whatever a name resolves to."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.core.egress import EgressClient, EgressRefused
from tests.receiver import receiving

LISTED = "pacs.clinic.example, 10.0.0.7:8443, http://ris.clinic.example:8080, [fd00::7]:9443, 10.1.0.0/16"


@pytest.mark.parametrize(
    "url",
    [
        "https://pacs.clinic.example/rlvo",
        "https://PACS.clinic.example:443/rlvo?a=b",
        "https://pacs.clinic.example./",
        "https://10.0.0.7:8443/",
        "http://ris.clinic.example:8080/x",
        "https://ris.clinic.example:8080/x",
        "https://[fd00::7]:9443/",
    ],
)
def test_what_is_listed_may_be_called(url: str) -> None:
    assert str(EgressClient(LISTED).check(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://pacs.clinic.example/rlvo",  # listed for TLS only
        "https://pacs.clinic.example:8443/",
        "https://pacs.clinic.example.evil.example/",
        "https://evil.example/pacs.clinic.example",
        "https://pacs.clinic.example@evil.example/",
        "https://user:password@pacs.clinic.example/",
        "https://pacs.clinic.example/#fragment",
        "https://evil.example\\@pacs.clinic.example/",
        "https://10.0.0.7/",
        "https://10.1.0.1/",  # a network says which addresses names may have, not which hosts may be called
        "https://127.0.0.1:8443/",
        "ftp://pacs.clinic.example/",
        "file:///etc/passwd",
        "gopher://pacs.clinic.example/",
        "//pacs.clinic.example/",
        "pacs.clinic.example",
        "https:///rlvo",
        "https://pacs.clinic.example/\r\nHost: evil.example",
        "https://pacs.clinic.exämple/",
        "https://[::ffff:10.0.0.7]:8443/",
        "https://" + "a" * 3000,
        "",
    ],
)
def test_what_is_not_listed_may_not(url: str) -> None:
    with pytest.raises(EgressRefused):
        EgressClient(LISTED).check(url)


def test_with_nothing_listed_nothing_leaves() -> None:
    with pytest.raises(EgressRefused):
        EgressClient("").check("https://pacs.clinic.example/")


@pytest.mark.parametrize("hosts", ["a b", "https://", "host:99999999", "user@host", "10.0.0.0/8/8", "host/path", "*"])
def test_an_entry_that_is_no_host_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="no host, address or network"):
        EgressClient(hosts)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.7",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",  # the metadata of a cloud
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fd00::7",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_a_name_may_not_lead_inside(address: str) -> None:
    outbound = EgressClient("pacs.clinic.example", resolve=lambda *_: ["93.184.215.14", address])
    with pytest.raises(EgressRefused):
        outbound.post("https://pacs.clinic.example/", b"{}", {})


def test_a_name_is_resolved_once_and_a_second_answer_never_asked_for() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    def resolve(_host: str, _port: int) -> Iterable[str]:
        return answers.pop(0)

    with receiving(204) as receiver:
        outbound = EgressClient(f"http://rebinding.example:{receiver.port}, 127.0.0.1", resolve=resolve)
        assert outbound.post(f"http://rebinding.example:{receiver.port}/", b"{}", {}) == 204
    assert receiver.headers[0]["Host"] == f"rebinding.example:{receiver.port}"
    assert len(answers) == 1


def test_a_private_address_needs_to_be_listed_itself() -> None:
    with receiving(204) as receiver:
        url = f"http://localhost:{receiver.port}/"
        with pytest.raises(EgressRefused):
            EgressClient(f"http://localhost:{receiver.port}").post(url, b"{}", {})
        assert not receiver.bodies
        listed = f"http://localhost:{receiver.port}, 127.0.0.0/8"
        assert EgressClient(listed, resolve=lambda *_: ["127.0.0.1"]).post(url, b"{}", {}) == 204


def test_a_redirect_leads_nowhere() -> None:
    with receiving(204) as inside, receiving(307, location=inside.url) as receiver:
        assert EgressClient(f"http://127.0.0.1:{receiver.port}").post(receiver.url, b"{}", {}) == 307
    assert not inside.bodies


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(204) as proxy, receiving(200) as receiver:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert EgressClient(f"http://127.0.0.1:{receiver.port}").post(receiver.url, b"{}", {}) == 200
    assert not proxy.bodies


def test_who_does_not_answer_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        EgressClient(f"http://127.0.0.1:{port}").post(f"http://127.0.0.1:{port}/", b"", {})


def test_tls_verifies_the_name_though_an_address_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = certified(tmp_path, "pacs.clinic.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the site's own authority
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with receiving(204, tls=tls) as receiver:
        listed = f"pacs.clinic.example:{receiver.port}, ris.clinic.example:{receiver.port}, 127.0.0.1"
        outbound = EgressClient(listed, resolve=lambda *_: ["127.0.0.1"])
        assert outbound.post(f"https://pacs.clinic.example:{receiver.port}/", b"{}", {}) == 204
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            outbound.post(f"https://ris.clinic.example:{receiver.port}/", b"{}", {})
    assert len(receiver.bodies) == 1


def certified(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for a host, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    place, secret = folder / "certificate.pem", folder / "key.pem"
    place.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return place, secret
