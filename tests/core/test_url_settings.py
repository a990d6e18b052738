"""A setting that names a URL is refused at the start if nothing could be reached by it."""

from __future__ import annotations

import pytest
import typer

from app.cli.common import settings

NAMES = ("otlp_endpoint", "oidc_issuer", "oidc_keys_url", "s3_endpoint", "public_url")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong",
    [
        "collector:4318",
        "collector",
        "//collector:4318",
        "grpc://collector:4317",
        "http://",
        "http:///v1",
        "https://:4318",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://a host",
        "http://host/a b",
    ],
)
def test_a_url_that_leads_nowhere_is_refused_by_name(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"RLVO_{name.upper()}", wrong)
    with pytest.raises(typer.Exit):
        settings()
    assert capsys.readouterr().err.startswith(f"RLVO_{name.upper()}: ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "valid",
    ["", "http://collector:4318", "https://collector.clinic.example/otlp/", "http://10.0.0.7", "http://[::1]:4318"],
)
def test_a_url_with_scheme_and_host_is_accepted(name: str, valid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RLVO_{name.upper()}", valid)
    assert getattr(settings(), name) == valid


def test_a_scheme_may_have_capital_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVO_OTLP_ENDPOINT", "HTTP://Collector:4318")
    assert settings().otlp_endpoint == "HTTP://Collector:4318"
