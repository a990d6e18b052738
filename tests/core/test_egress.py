"""Outbound calls go to listed hosts and permitted addresses only."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from app.core.egress import EgressClient, EgressRefused
from tests.certificates import certified
from tests.deployment import free_port
from tests.receiver import receiving

NOT_PUBLIC = (
    *("192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.9", "240.0.0.1"),
    *("192.31.196.1", "192.52.193.1", "192.175.48.1", "239.255.255.250"),
    *("64:ff9b:1::1", "64:ff9b:1:7f00:0:1::", "64:ff9b:2::1", "64:ff9b::c058:6301"),  # NAT64; the last is 192.88.99.1
    *("::7f00:1", "::808:808", "::ffff:0:808:808", "fec0::1", "fe80::1", "100::1", "3fff::1", "3fff:fff::1"),
    *("2001::1", "2001:0:808:808::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2620:4f:8000::1"),
    *("5f00::1", "4000::1", "8000::1", "fc00::1", "ff0e::1", "2002:c058:6301::", "2002:a9fe:a9fe::"),
)
"""Addresses of the special-purpose registries of IANA, of each kind, and of blocks that IANA has not assigned."""
PUBLIC = (
    *("8.8.8.8", "93.184.215.14", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1"),
    *("192.88.98.1", "192.88.100.1", "198.17.0.1", "198.20.0.1", "223.255.255.254"),
    *("2001:200::1", "2001:4860:4860::8888", "2606:4700::1111", "2a00:1450:4003::1", "2003::1", "3ffe::1"),
    *("3fff:1000::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"),
)
"""Addresses of internet hosts, some next to a special block."""

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
def test_listed_url_is_permitted(url: str) -> None:
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
        "https://10.1.0.1/",  # a network lists permitted addresses of names, not hosts
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
def test_unlisted_url_is_refused(url: str) -> None:
    with pytest.raises(EgressRefused):
        EgressClient(LISTED).check(url)


def test_empty_list_permits_no_call() -> None:
    with pytest.raises(EgressRefused):
        EgressClient("").check("https://pacs.clinic.example/")


@pytest.mark.parametrize("hosts", ["a b", "https://", "host:99999999", "user@host", "10.0.0.0/8/8", "host/path", "*"])
def test_invalid_entry_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="not a host, an address or a network"):
        EgressClient(hosts)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.7",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",  # metadata service of a cloud
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
        *NOT_PUBLIC,
    ],
)
def test_name_with_a_non_public_address_is_refused(address: str) -> None:
    client = EgressClient("pacs.clinic.example", resolve=lambda *_: ["93.184.215.14", address])
    with pytest.raises(EgressRefused):
        client.post("https://pacs.clinic.example/", b"{}", {})


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_permitted(address: str) -> None:
    assert EgressClient("pacs.clinic.example")._allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_of_a_special_block_is_permitted_if_it_is_listed(address: str) -> None:
    assert EgressClient(f"pacs.clinic.example, {address}")._allowed(ipaddress.ip_address(address))
    assert not EgressClient("pacs.clinic.example, 10.9.9.9")._allowed(ipaddress.ip_address(address))


def test_name_is_resolved_once() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    def resolve(_host: str, _port: int) -> Iterable[str]:
        return answers.pop(0)

    with receiving(204) as receiver:
        client = EgressClient(f"http://rebinding.example:{receiver.port}, 127.0.0.1", resolve=resolve)
        assert client.post(f"http://rebinding.example:{receiver.port}/", b"{}", {}) == 204
    assert receiver.headers[0]["Host"] == f"rebinding.example:{receiver.port}"
    assert len(answers) == 1


def test_private_address_must_be_listed_itself() -> None:
    with receiving(204) as receiver:
        url = f"http://localhost:{receiver.port}/"
        with pytest.raises(EgressRefused):
            EgressClient(f"http://localhost:{receiver.port}").post(url, b"{}", {})
        assert not receiver.bodies
        listed = f"http://localhost:{receiver.port}, 127.0.0.0/8"
        assert EgressClient(listed, resolve=lambda *_: ["127.0.0.1"]).post(url, b"{}", {}) == 204


def test_redirect_is_not_followed() -> None:
    with receiving(204) as target, receiving(307, location=target.url) as receiver:
        assert EgressClient(f"http://127.0.0.1:{receiver.port}").post(receiver.url, b"{}", {}) == 307
    assert not target.bodies


def test_environment_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(204) as proxy, receiving(200) as receiver:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert EgressClient(f"http://127.0.0.1:{receiver.port}").post(receiver.url, b"{}", {}) == 200
    assert not proxy.bodies


def test_unreachable_host_is_an_error() -> None:
    port = free_port()
    with pytest.raises(httpx.ConnectError):
        EgressClient(f"http://127.0.0.1:{port}").post(f"http://127.0.0.1:{port}/", b"", {})


def test_tls_verifies_the_name_although_an_address_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = certified(tmp_path, "pacs.clinic.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # certificate authority of the site
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with receiving(204, tls=tls) as receiver:
        listed = f"pacs.clinic.example:{receiver.port}, ris.clinic.example:{receiver.port}, 127.0.0.1"
        client = EgressClient(listed, resolve=lambda *_: ["127.0.0.1"])
        assert client.post(f"https://pacs.clinic.example:{receiver.port}/", b"{}", {}) == 204
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            client.post(f"https://ris.clinic.example:{receiver.port}/", b"{}", {})
    assert len(receiver.bodies) == 1
