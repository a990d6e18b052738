"""Which DICOM applications may send, whose studies theirs are, and the certificates; needs no DICOM library."""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from app.core.ae_title import AE_TITLE
from app.core.config import Settings

__all__ = ["AeCaller", "callers_of", "check_listener", "may_connect", "tenant_of", "tls_context", "validated_callers"]

LOCAL_TENANT = "local"
_NETWORK_LIBRARY = "pynetdicom"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_RULE = (
    "RLVO_DICOM_CALLERS must be AE titles, each with an optional address and tenant, comma-separated: "
    "`CT1@10.0.0.5=stroke, PACS@10.0.1.0/24`"
)


@dataclass(frozen=True)
class AeCaller:
    """An application that may send.

    Attributes:
        title: its AE title.
        network: the addresses that it may send from; None for all.
        tenant: tenant that its studies belong to.
    """

    title: str
    network: IPv4Network | IPv6Network | None = None
    tenant: str = LOCAL_TENANT


def callers_of(text: str) -> list[AeCaller]:
    """Read the setting of the callers.

    Args:
        text: entries ``TITLE@ADDRESS=TENANT``, comma-separated; address and tenant may be left out.

    Returns:
        The callers.

    Raises:
        ValueError: an entry has another form, or is never used because of an earlier one with another tenant.
    """
    callers: list[AeCaller] = []
    for entry in filter(None, (each.strip() for each in text.split(","))):
        title, _, rest = entry.partition("@") if "@" in entry else entry.partition("=")
        host, _, tenant = rest.partition("=") if "@" in entry else ("", "", rest)
        if not re.fullmatch(AE_TITLE, title) or not re.fullmatch(r"[!-~]{0,64}", tenant) or ("=" in title):
            raise ValueError(_RULE)
        try:
            network = ip_network(host, strict=False) if "@" in entry else None
        except ValueError:
            raise ValueError(_RULE) from None
        caller = AeCaller(title, network, tenant or LOCAL_TENANT)
        if any(_hides(each, caller) for each in callers):
            raise ValueError(
                f"RLVO_DICOM_CALLERS gives {title} another tenant at the same address. List the narrower address first"
            )
        callers.append(caller)
    return callers


def _hides(earlier: AeCaller, later: AeCaller) -> bool:
    """Whether an entry decides wherever a later one with another tenant would, so that the later one is never used."""
    if earlier.title != later.title or earlier.tenant == later.tenant:
        return False
    wide, narrow = earlier.network, later.network
    if wide is None or narrow is None:
        return wide is None
    return wide.version == narrow.version and narrow.subnet_of(wide)  # type: ignore[arg-type]


def validated_callers(settings: Settings) -> list[AeCaller]:
    """Read the callers of the settings.

    Args:
        settings: address of the listener, and callers.

    Returns:
        The callers.

    Raises:
        ValueError: an entry has another form, or other machines could send without being listed.
    """
    callers = callers_of(settings.dicom_callers)
    if not callers and settings.dicom_host not in _LOOPBACK:
        raise ValueError("RLVO_DICOM_HOST lets other machines connect; RLVO_DICOM_CALLERS must say which may send")
    return callers


def check_listener(settings: Settings) -> None:
    """Check the settings of the DICOM listener, without loading it.

    Args:
        settings: the settings.

    Raises:
        ValueError: a setting is wrong, or the libraries are not installed.
    """
    if importlib.util.find_spec(_NETWORK_LIBRARY) is None:
        raise ValueError("RLVO_DICOM_PORT needs the DICOM libraries: install rlvo-service[dicom]")
    validated_callers(settings)
    tls_context(settings)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Read the certificates of the listener; None without TLS.

    Args:
        settings: names of the files.

    Returns:
        The context of the server.

    Raises:
        ValueError: a file cannot be read, or a key or certificates of senders are given without a certificate.
    """
    if not settings.dicom_tls_certificate:
        if settings.dicom_tls_key or settings.dicom_tls_callers:
            raise ValueError("RLVO_DICOM_TLS_KEY and RLVO_DICOM_TLS_CALLERS need RLVO_DICOM_TLS_CERTIFICATE")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.dicom_tls_certificate, settings.dicom_tls_key or None)
        if settings.dicom_tls_callers:
            context.load_verify_locations(settings.dicom_tls_callers)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError):
        names = "RLVO_DICOM_TLS_CERTIFICATE, RLVO_DICOM_TLS_KEY or RLVO_DICOM_TLS_CALLERS"
        raise ValueError(f"A file of {names} cannot be read: it must be PEM") from None
    return context


def may_connect(callers: Sequence[AeCaller], address: str) -> bool:
    """Whether any caller may send from an address; without callers, only this machine may."""
    if not callers:
        return ip_address(address).is_loopback
    return any(_from(each, address) for each in callers)


def tenant_of(callers: Sequence[AeCaller], title: str, address: str) -> str | None:
    """Tenant of the application with this AE title at this address; None if it may not send."""
    if not callers:
        return LOCAL_TENANT if ip_address(address).is_loopback else None
    return next((each.tenant for each in callers if each.title == title.strip() and _from(each, address)), None)


def _from(caller: AeCaller, address: str) -> bool:
    at = ip_address(address)
    mapped = getattr(at, "ipv4_mapped", None)
    return caller.network is None or (mapped or at) in caller.network
