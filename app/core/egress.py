"""HTTP client for outbound calls, restricted to the hosts that the operator listed (docs/decisions/0040).

Design notes:
- Only listed hosts are called. An empty list permits no call.
- A host name is resolved once, and all its addresses are checked. The connection uses a checked address (against DNS
  rebinding); TLS still verifies the name.
- An address that is not public must be in the list itself, or in a listed network. Public are the addresses outside the
  special-purpose registries of IANA (RFC 6890); of IPv6, only those that are assigned as global unicast (2000::/3).
- Redirects are not followed, and environment proxies are not used.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx

TIMEOUT = httpx.Timeout(10.0)  # seconds for each of: connect, send, first byte of the answer
LONGEST_URL = 2000

_PORTS = {"https": 443, "http": 80}
_ENTRY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?)(?::(?P<port>[0-9]{1,5}))?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # IANA has assigned no other block for public hosts
_SPECIAL = [
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by the customers of a provider
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Iterable[str]]


class EgressRefused(Exception):
    """Outbound call that is not permitted; the message names the rule and contains no part of the address."""


@dataclass(frozen=True)
class _Entry:
    """Listed host: name or address, port (None: default of the scheme), and whether plain HTTP is permitted."""

    host: str
    port: int | None
    plain: bool


def resolve_addresses(host: str, port: int) -> list[str]:
    """Return all addresses of a host by the system resolver; an unknown name raises OSError."""
    return [str(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class EgressClient:
    """HTTP client that calls the listed hosts only; safe to use from several threads."""

    def __init__(
        self, hosts: str, *, resolve: Resolve = resolve_addresses, setting: str = "RLVO_WEBHOOK_HOSTS"
    ) -> None:
        """Parse the list of permitted hosts.

        Args:
            hosts: Comma-separated names, addresses and networks, with ``:port`` for another
                port than the default, and with ``http://`` to permit plain HTTP.
            resolve: Function that returns the addresses of a host and port.
            setting: Name of the setting, for messages.

        Raises:
            ValueError: An entry is not a host, address or network.
        """
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._entries: list[_Entry] = []
        self._resolve = resolve
        self._setting = setting
        for text in filter(None, (each.strip() for each in hosts.split(","))):
            self._add_entry(text)

    def check(self, url: str) -> httpx.URL:
        """Parse a URL and check it against the list, without a name look-up; raise EgressRefused if not permitted."""
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable():
            raise EgressRefused(f"The URL must have at most {LONGEST_URL} characters, all of them printable ASCII")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise EgressRefused("The text is not a valid URL") from None
        if parsed.scheme not in _PORTS or not parsed.host:
            raise EgressRefused("The URL must begin with https:// (or http://) and a host")
        if parsed.userinfo or parsed.fragment:
            raise EgressRefused("The URL must not contain a user, a password or a fragment")
        port = parsed.port or _PORTS[parsed.scheme]
        for entry in self._entries:
            same_port = port == (entry.port or _PORTS[parsed.scheme])
            if entry.host == _normalised(parsed.host) and same_port and (entry.plain or parsed.scheme == "https"):
                return parsed
        raise EgressRefused(f"{self._setting} does not list this host and port, or permits https only")

    def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> int:
        """Send ``content`` by POST and return the status code of the answer; errors as of ``request``."""
        return self.request("POST", url, content, headers)

    def request(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], *, seconds: float | None = None
    ) -> int:
        """Make a request and return the status code of the answer.

        Args:
            method: The method.
            url: The URL.
            content: The body.
            headers: Headers.
            seconds: Limit for each of connect, send and first byte of the answer; None: the usual one.

        Raises:
            EgressRefused: The URL or an address of its host is not permitted.
            OSError: The host name cannot be resolved.
            httpx.HTTPError: The request failed.
            ssl.SSLError: The TLS handshake failed; the certificate, for example, is not valid.
        """
        with self.open(method, url, content, headers, seconds=seconds) as answer:
            return answer.status_code

    @contextmanager
    def open(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], *, seconds: float | None = None
    ) -> Iterator[httpx.Response]:
        """Make a request, and yield its answer to be read as a stream; arguments and errors as of ``request``."""
        parsed = self.check(url)
        host, port = _normalised(parsed.host), parsed.port or _PORTS[parsed.scheme]
        pinned = parsed.copy_with(host=self._address(host, port))
        named = {**headers, "Host": parsed.netloc.decode("ascii")}
        with (
            _tls_errors(),
            httpx.Client(
                verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=seconds or TIMEOUT
            ) as client,
            client.stream(method, pinned, content=content, headers=named, extensions={"sni_hostname": host}) as answer,
        ):
            yield answer

    def pinned(self, host: str, port: int) -> str:
        """Return a checked address for a connection that is not HTTP; the list must have the host with this port.

        Raises:
            EgressRefused: The host, the port or an address is not permitted.
            OSError: The host name cannot be resolved.
        """
        self.check_host(host, port)
        return self._address(_normalised(host), port)

    def check_host(self, host: str, port: int) -> None:
        """Check a host and port against the list, without a name look-up; raise EgressRefused if not permitted."""
        name = _normalised(host)
        if not any(entry.host == name and entry.port in (None, port) for entry in self._entries):
            raise EgressRefused(f"{self._setting} does not list this host and port")

    def _address(self, host: str, port: int) -> str:
        """Return one address of the host after checking all of them."""
        addresses = list(self._resolve(host, port))
        for each in addresses:
            if not self._allowed(ipaddress.ip_address(each.partition("%")[0])):
                raise EgressRefused(f"The host has a non-public address that {self._setting} does not list")
        if not addresses:
            raise OSError("the host has no address")
        return addresses[0]

    def _allowed(self, address: Address) -> bool:
        inner = _embedded_ipv4(address)
        return any(inner in network or address in network for network in self._networks) or _is_public(inner)

    def _add_entry(self, text: str) -> None:
        plain = text.startswith("http://")
        bare = text.lower().removeprefix("http://").removeprefix("https://").rstrip("/")
        try:
            network = ipaddress.ip_network(bare.strip("[]"))
        except ValueError:
            network = None
        if network is not None:
            self._networks.append(network)
            if "/" not in bare:
                self._entries.append(_Entry(_normalised(bare), None, plain))
        elif entry := _ENTRY.fullmatch(bare):
            host, port = _normalised(entry["host"]), entry["port"]
            self._entries.append(_Entry(host, int(port) if port else None, plain))
            with suppress(ValueError):
                self._networks.append(ipaddress.ip_network(host))
        else:
            raise ValueError(f"{self._setting} contains an entry that is not a host, an address or a network")


@contextmanager
def _tls_errors() -> Iterator[None]:
    """Raise the error of a TLS handshake itself, which httpx reports as a failed connection."""
    try:
        yield
    except httpx.ConnectError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def _normalised(host: str) -> str:
    """Normalised host: lower case, no final dot, no brackets around an IPv6 address."""
    return host.strip("[]").rstrip(".").lower()


def _is_public(address: Address) -> bool:
    """Whether the address can belong to a host of the internet."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _SPECIAL)


def _embedded_ipv4(address: Address) -> Address:
    """IPv4 address that an IPv6 address contains (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
