"""HTTP helpers of the blocking and the asynchronous client."""

from __future__ import annotations

from typing import Any

import httpx

from .errors import TransportError


def http_options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of the httpx client: base address, headers and timeouts.

    Raises:
        ValueError: The address is not one of HTTP.
    """
    address = httpx.URL(url)
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(
            "The address of the service must be like http://127.0.0.1:8000 or https://rlvo.clinic.example."
        )
    headers = {"Accept": "application/json", "User-Agent": "rlvo-python"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0))}


def transport_error(error: httpx.TransportError) -> TransportError:
    return TransportError(f"The service did not answer ({type(error).__name__})")


def schema_path(name: str | None, version: str | None) -> str:
    if name is None:
        return "/v1/schema/clinical"
    return f"/v1/models/{name}/versions/{version or 'champion'}/clinical-schema"
