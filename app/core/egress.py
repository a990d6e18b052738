"""Calls that leave the house: to the hosts that an operator listed, at addresses that were looked at first.

Notable choices:
- A list of hosts that may be called, and nothing else may (OWASP, "Server-Side Request Forgery Prevention"). With none
  listed nothing leaves.
- A name is resolved once, every address it has is judged, and the connection goes to one that was judged: a second
  answer of the resolver (DNS rebinding) is never asked for. TLS still verifies the name.
- An address that is not public (loopback, private, link-local with its cloud metadata, multicast) is called only where
  the list names the address itself, or a network that holds it.
- Redirects are answers like any other and followed nowhere; proxies of the environment are not used; an answer's body
  is not read.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx

TIMEOUT = httpx.Timeout(10.0)
"""Seconds for each of: connecting, sending, the first byte of an answer."""
LONGEST_URL = 2000

_PORTS = {"https": 443, "http": 80}
_ENTRY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?)(?::(?P<port>[0-9]{1,5}))?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Iterable[str]]


class EgressRefused(Exception):
    """A call that may not be made; the message says which rule forbids it and repeats nothing of the address."""


@dataclass(frozen=True)
class _Entry:
    """One host of the list: a name or an address, its port (None: the scheme's), and whether it may be without TLS."""

    host: str
    port: int | None
    plain: bool


def resolved(host: str, port: int) -> list[str]:
    """Every address of a host, by the machine's own resolver. Raises OSError."""
    return [str(place[0]) for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class EgressClient:
    """Sends to the listed hosts. Safe to use from many threads.

    :param hosts: ``RLVO_WEBHOOK_HOSTS``: names, addresses and networks by comma; ``:port`` where it is not the
        scheme's own; ``http://`` before one that speaks no TLS
    :raises ValueError: an entry that is none of these
    """

    def __init__(self, hosts: str, *, resolve: Resolve = resolved) -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._entries: list[_Entry] = []
        self._resolve = resolve
        for text in filter(None, (each.strip() for each in hosts.split(","))):
            self._list(text)

    def check(self, url: str) -> httpx.URL:
        """The URL, if it may be called. Looks up no address. Raises Refused."""
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable():
            raise EgressRefused("A URL has at most 2000 printable ASCII characters")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise EgressRefused("That is no URL") from None
        if parsed.scheme not in _PORTS or not parsed.host:
            raise EgressRefused("A URL begins with https:// and a host")
        if parsed.userinfo or parsed.fragment:
            raise EgressRefused("A URL holds no user, password or fragment")
        port = parsed.port or _PORTS[parsed.scheme]
        for entry in self._entries:
            same_port = port == (entry.port or _PORTS[parsed.scheme])
            if entry.host == _plain(parsed.host) and same_port and (entry.plain or parsed.scheme == "https"):
                return parsed
        raise EgressRefused("RLVO_WEBHOOK_HOSTS does not list this host and port, or lists it with https only")

    def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> int:
        """Sends ``content`` and returns the status of the answer.

        Raises Refused, OSError (the name does not resolve), httpx.HTTPError, ssl.SSLError.
        """
        parsed = self.check(url)
        host, port = _plain(parsed.host), parsed.port or _PORTS[parsed.scheme]
        address = self._address(host, port)
        pinned = parsed.copy_with(host=address)
        named = {**headers, "Host": parsed.netloc.decode("ascii")}
        with (
            httpx.Client(
                verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=TIMEOUT
            ) as client,
            client.stream("POST", pinned, content=content, headers=named, extensions={"sni_hostname": host}) as answer,
        ):
            return answer.status_code

    def _address(self, host: str, port: int) -> str:
        """One address of the host, after all of them were found allowed. Raises Refused, OSError."""
        found = list(self._resolve(host, port))
        for each in found:
            if not self._allowed(ipaddress.ip_address(each.partition("%")[0])):
                raise EgressRefused(
                    "The host has an address that is not public and that RLVO_WEBHOOK_HOSTS does not list"
                )
        if not found:
            raise OSError("the host has no address")
        return found[0]

    def _allowed(self, address: Address) -> bool:
        inner = _inside(address)
        if any(inner in network for network in self._networks):
            return True
        return inner.is_global and not inner.is_multicast

    def _list(self, text: str) -> None:
        plain = text.startswith("http://")
        bare = text.lower().removeprefix("http://").removeprefix("https://").rstrip("/")
        try:
            network = ipaddress.ip_network(bare.strip("[]"))
        except ValueError:
            network = None
        if network is not None:
            self._networks.append(network)
            if "/" not in bare:
                self._entries.append(_Entry(_plain(bare), None, plain))
        elif entry := _ENTRY.fullmatch(bare):
            host, port = _plain(entry["host"]), entry["port"]
            self._entries.append(_Entry(host, int(port) if port else None, plain))
            with suppress(ValueError):
                self._networks.append(ipaddress.ip_network(host))
        else:
            raise ValueError("RLVO_WEBHOOK_HOSTS holds an entry that is no host, address or network")


def _plain(host: str) -> str:
    """A host in one spelling: lower case, no final dot, an IPv6 address without its brackets."""
    return host.strip("[]").rstrip(".").lower()


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), since that is where it leads."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
