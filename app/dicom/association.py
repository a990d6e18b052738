"""Associations that this service opens with an archive (DICOM PS3.8)."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role

from app.core.egress import EgressClient, EgressRefused
from app.database.destinations import Destination
from app.dicom.errors import ArchiveFailed

__all__ = ["VERIFICATION", "association", "host_and_port", "reach"]

VERIFICATION = "1.2.840.10008.1.1"


@contextmanager
def association(
    egress: EgressClient,
    seconds: float,
    destination: Destination,
    classes: Iterable[str],
    *,
    optional: Iterable[str] = (),
    as_scp: Iterable[str] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Iterator[Any]:
    """Open an association that accepts all these SOP classes, for the block.

    Args:
        egress: the listed hosts.
        seconds: limit of each network operation.
        destination: the archive.
        classes: SOP Class UIDs.
        optional: classes that the archive need not accept.
        as_scp: those of the classes in which this service is the provider.
        handlers: event handlers of pynetdicom.

    Yields:
        The association of pynetdicom.

    Raises:
        ArchiveFailed: the archive is away, or refuses.
    """
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its messages show names
    host, port = host_and_port(destination)
    address = reach(egress, seconds, host, port, tls=destination.tls)
    asked = set(classes)
    entity = AE(ae_title=destination.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = seconds
    for each in sorted(asked | set(optional)):
        entity.add_requested_context(each, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    tls = (ssl.create_default_context(), host) if destination.tls else None
    roles: list[Any] = [build_role(each, scp_role=True) for each in as_scp]
    opened = entity.associate(
        address, port, ae_title=destination.called, tls_args=tls, ext_neg=roles or None, evt_handlers=list(handlers)
    )
    try:
        if opened.is_rejected:
            raise ArchiveFailed("rejected")
        if not opened.is_established:
            raise ArchiveFailed("unreachable")
        if not asked <= {str(each.abstract_syntax) for each in opened.accepted_contexts}:
            raise ArchiveFailed("class-not-accepted")
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def reach(egress: EgressClient, seconds: float, host: str, port: int, *, tls: bool = False) -> str:
    """Open and close a connection, because a failed association does not tell why there is none.

    Args:
        egress: the listed hosts.
        seconds: limit of each network operation.
        host: name or address.
        port: port.
        tls: with a TLS handshake.

    Returns:
        The checked address of the host.

    Raises:
        ArchiveFailed: there is no connection.
    """
    try:
        address = egress.pinned(host, port)
        with socket.create_connection((address, port), seconds) as connection:
            if tls:
                ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
    except EgressRefused:
        raise ArchiveFailed("not-listed") from None
    except TimeoutError:
        raise ArchiveFailed("timeout") from None
    except ssl.SSLError:
        raise ArchiveFailed("tls") from None
    except OSError:
        raise ArchiveFailed("unreachable") from None
    return address


def host_and_port(destination: Destination) -> tuple[str, int]:
    """Host and port of a destination that is reached by DIMSE."""
    host, _, port = destination.address.rpartition(":")
    return host, int(port)
