"""Decides whether a request without a key comes from this machine, and from a page of this service.

Design notes:
- Browsers and proxies on this machine connect over loopback too, so the address of the client says nothing.
- A foreign Host is DNS rebinding or a proxy. A proxy also shows by its headers, or by HTTP/1.0 (nginx before 1.29.7).
- A page of another origin cannot choose Host, Origin and Sec-Fetch-Site, because the browser sets them (Fetch standard,
  forbidden request headers; W3C Fetch Metadata). A client that is no browser sends no Sec-Fetch-Site.
- A link of another page may open an address of this service: the page cannot read the response of a navigation.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from app.sdk.errors import CrossOrigin

_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
_PROXY_PREFIXES = ("x-forwarded-", "x-original-", "x-envoy-", "x-proxy")
_PROXY_HEADERS = {
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
}
_OWN = {"same-origin", "none"}  # none: the user typed the address or opened a bookmark


def is_local(scope: Scope, headers: Headers) -> bool:
    """Returns whether the request names this machine and shows no sign of a proxy; the service listens on loopback."""
    if scope.get("http_version") == "1.0":
        return False
    if any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIXES) for name in headers):
        return False
    hosts = headers.getlist("host")
    return len(hosts) == 1 and _is_loopback(hosts[0])


def check_origin(scope: Scope, headers: Headers, *, public_url: str = "") -> None:
    """Refuses a request that a page of another origin makes a browser send.

    Args:
        scope: The ASGI scope of the request.
        headers: Its headers.
        public_url: External URL of the service; its pages are pages of the service too.

    Raises:
        CrossOrigin: The request comes from a page of another origin.
    """
    sites = set(headers.getlist("sec-fetch-site"))
    if sites - _OWN and not _opens_a_page(scope, headers):
        raise _refusal()
    own = {headers.get("host", "").lower(), urlsplit(public_url).netloc.lower()} - {""}
    # A form of our pages has the Origin `null`, because they set Referrer-Policy: no-referrer.
    accepted = {"null"} if sites and not sites - _OWN else set()
    origins = headers.getlist("origin")
    if any(_authority(origin) not in own and origin not in accepted for origin in origins):
        raise _refusal()
    if not (sites or origins) and scope["method"] not in ("GET", "HEAD"):  # browsers before 2020
        referrers = [_authority(each) for each in headers.getlist("referer")]
        if any(each not in own for each in referrers):
            raise _refusal()


def _opens_a_page(scope: Scope, headers: Headers) -> bool:
    """Whether the browser shows the response as a page of its own, as after a click on a link."""
    navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return navigates and scope["method"] in ("GET", "HEAD")


def _is_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["name"].strip("[]").lower()
    if name.removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _authority(url: str) -> str:
    """Host and port of a URL; empty if it is not a URL with a host."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _refusal() -> CrossOrigin:
    return CrossOrigin(
        "The request comes from a page of another web site, and this service requires no key. Open the page of the "
        "service itself, or require keys (RLVO_AUTH=keys)."
    )
