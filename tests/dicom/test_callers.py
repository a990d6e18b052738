"""The setting of DICOM callers names who may send, from where, and for which tenant."""

from __future__ import annotations

import pytest

from app.core.config import Settings
from app.dicom.callers import callers_of, check_listener, may_connect, tenant_of, tls_context

CALLERS = callers_of("CT1@10.0.0.5=stroke, PACS SOUTH@10.0.1.0/24, GATE=other, V6@fd00::/8")


@pytest.mark.parametrize(
    ("title", "address", "tenant"),
    [
        ("CT1", "10.0.0.5", "stroke"),
        ("CT1 ", "::ffff:10.0.0.5", "stroke"),
        ("CT1", "10.0.0.6", None),
        ("PACS SOUTH", "10.0.1.77", "local"),
        ("PACS SOUTH", "10.0.2.77", None),
        ("GATE", "192.168.3.4", "other"),
        ("V6", "fd00::1", "local"),
        ("ct1", "10.0.0.5", None),
        ("", "10.0.0.5", None),
    ],
)
def test_title_and_address_give_the_tenant(title: str, address: str, tenant: str | None) -> None:
    assert tenant_of(CALLERS, title, address) == tenant


def test_without_callers_only_this_machine_sends() -> None:
    assert tenant_of([], "ANY", "127.0.0.1") == tenant_of([], "ANY", "::1") == "local"
    assert tenant_of([], "ANY", "10.0.0.5") is None
    assert may_connect([], "127.0.0.2")
    assert not may_connect([], "10.0.0.5")


def test_an_address_that_no_caller_has_cannot_connect() -> None:
    listed = callers_of("CT1@10.0.0.5")
    assert may_connect(listed, "10.0.0.5")
    assert not may_connect(listed, "127.0.0.1")


@pytest.mark.parametrize(
    "text", ["@10.0.0.5", "A" * 17, "CT\\1", "CT1@scanner.example", "CT1@10.0.0.5=a b", "CT1@=x", "=x"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RLVO_DICOM_CALLERS"):
        callers_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "CT1=a, CT1=b",
        "CT1@10.0.0.5=a, PACS, CT1@10.0.0.5",
        "CT1@10.0.0.0/24=a, CT1@10.0.0.7=b",
        "CT1=a, CT1@fd00::/8=b",
    ],
)
def test_two_tenants_of_one_caller_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="another tenant at the same address"):
        callers_of(text)


def test_one_title_at_two_addresses_has_two_tenants() -> None:
    listed = callers_of("CT1@10.0.0.5=a, CT1@10.0.0.6=b, CT1@fd00::/8=d, CT1=c, CT1=c")
    assert [tenant_of(listed, "CT1", f"10.0.0.{host}") for host in (5, 6, 7)] == ["a", "b", "c"]


@pytest.mark.parametrize("given", [{"dicom_tls_key": "key.pem"}, {"dicom_tls_callers": "callers.pem"}])
def test_tls_settings_without_a_certificate_do_not_turn_tls_off(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="need RLVO_DICOM_TLS_CERTIFICATE"):
        check_listener(Settings(**given))


def test_certificate_that_cannot_be_read_is_found_before_the_listener_starts() -> None:
    with pytest.raises(ValueError, match="must be PEM"):
        check_listener(Settings(dicom_tls_certificate="gone.pem"))


def test_listener_without_tls_settings_has_no_tls() -> None:
    assert tls_context(Settings()) is None
    check_listener(Settings())
