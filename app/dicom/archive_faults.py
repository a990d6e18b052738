"""Names the faults of a request to an archive in one word, for retrieval and delivery alike."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from app.core.egress import EgressRefused
from app.dicom.errors import ArchiveFailed


@contextmanager
def http_faults() -> Iterator[None]:
    """Raise ArchiveFailed for every fault of the HTTP request in the block."""
    try:
        yield
    except EgressRefused:
        raise ArchiveFailed("not-listed") from None
    except httpx.TimeoutException:
        raise ArchiveFailed("timeout") from None
    except ssl.SSLError:
        raise ArchiveFailed("tls") from None
    except (OSError, httpx.HTTPError):
        raise ArchiveFailed("unreachable") from None
