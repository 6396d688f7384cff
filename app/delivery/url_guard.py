"""Where a webhook may go: checked when an endpoint is saved, and again at every connection.

A host name can resolve to another address a second after the check, so the check that counts is made on the address of the
connection: `GuardedNetwork` resolves the name once, drops the addresses that are not permitted, and connects to one of the rest.
Host header, SNI and the certificate's name stay those of the URL. Nothing is sent by this module.

`allow_private` permits loopback addresses (a local installation) or all private ones (a closed network). The table of
`special_addresses` says which address is of which kind, and which are always refused.
"""

import asyncio
import re
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import httpcore
import httpx
from typing_extensions import override

from app.delivery.special_addresses import Address, refusal
from app.domain.errors import Fault
from app.errors import Invalid
from app.settings import PrivateAddresses

MAX_URL = 2048
MAX_HOST = 253
CONNECT_TIMEOUT_S = 5.0
MAX_ADDRESSES = 4
RESOLVER_THREADS = 32
_PORTS = frozenset((80, 443, *range(1024, 65536)))
_LABEL = r"[A-Za-z0-9_-]{1,63}"
# One dot may end a name; a longer label or an empty one cannot be encoded for a name server.
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")


class AddressRefused(Exception):
    """A host name resolved to no address that a webhook may be sent to."""


def check_url(url: str, *, allow_private: PrivateAddresses) -> None:
    """Raise `Invalid` (field `url`) if the URL itself shows that no webhook may be sent there."""
    fault = _fault_of(url, allow_private=allow_private)
    if fault is not None:
        raise _invalid(fault)


async def check_destination(url: str, *, allow_private: PrivateAddresses) -> None:
    """`check_url`, and the addresses that the host resolves to now; a host that does not resolve yet is accepted."""
    check_url(url, allow_private=allow_private)
    parsed = httpx.URL(url)
    resolver = Resolver(threads=1)
    try:
        addresses = await resolver.addresses(parsed.raw_host.decode(), parsed.port or 443)
    except httpcore.ConnectError:
        return
    finally:
        resolver.close()
    refusals = [refusal(ip_address(address), allow_private=allow_private) for address in addresses]
    if all(refusals):
        raise _invalid(_address_fault(f"{parsed.host} is {addresses[0]}, {refusals[0]}"))


class Resolver:
    """Resolves host names in threads of its own, so that a slow name server does not delay other endpoints."""

    def __init__(self, *, threads: int = RESOLVER_THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """A host's addresses in the order of preference; `httpcore.ConnectError` if it has none."""
        literal = literal_address(host)
        if literal is not None:
            return (str(literal),)
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
        return await lookup

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """httpcore's network, limited to permitted addresses: each connection goes to an address checked just before."""

    def __init__(self, *, resolver: Resolver, allow_private: PrivateAddresses) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._network = httpcore.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._permitted(host, port)
        error: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, timeout or CONNECT_TIMEOUT_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error or httpcore.ConnectError(f"{host} has no address")

    @override
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        msg = "a webhook never goes to a Unix socket"
        raise AddressRefused(msg)

    @override
    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)

    async def _permitted(self, host: str, port: int) -> list[str]:
        addresses = await self._resolver.addresses(host, port)
        refusals = {each: refusal(ip_address(each), allow_private=self._allow_private) for each in addresses}
        permitted = [each for each, why in refusals.items() if not why]
        if not permitted:
            each, why = next(iter(refusals.items()))
            msg = f"{host} is {each}, {why}"
            raise AddressRefused(msg)
        return permitted


def literal_address(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _look_up(host: str, port: int) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        msg = f"{host} does not resolve: {error}"
        raise httpcore.ConnectError(msg) from error
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _fault_of(url: str, *, allow_private: PrivateAddresses) -> Fault | None:
    # The parser is the sender's own: two parsers that read one URL differently are a way around any check.
    if len(url) > MAX_URL:
        return Fault("url", f"is longer than {MAX_URL} characters", "give a shorter URL")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        return Fault("url", f"is not a URL: {reason}", "give a URL such as https://example.com/webhooks")
    return _scheme_fault(parsed) or _host_fault(parsed, allow_private=allow_private) or _port_fault(parsed)


def _scheme_fault(url: httpx.URL) -> Fault | None:
    if url.scheme not in ("http", "https"):
        return Fault("url", f"has the scheme {url.scheme!r}", "start it with https:// or http://")
    if url.userinfo:
        return Fault("url", "carries a user name or password", "leave them out: a webhook is authenticated by its signature")
    if url.fragment:
        return Fault("url", "has a fragment (#…), which is never sent", "leave out what follows the #")
    return None


def _host_fault(url: httpx.URL, *, allow_private: PrivateAddresses) -> Fault | None:
    host = url.raw_host.decode()
    if not host or len(host) > MAX_HOST:
        return Fault("url", "names no host", "give a URL such as https://example.com/webhooks")
    address = literal_address(host)
    if address is None:
        fault = Fault("url", f"names the host {host!r}, which is no name", "use labels of 1 to 63 letters, digits and hyphens")
        return None if _HOST.fullmatch(host) else fault
    why = refusal(address, allow_private=allow_private)
    return _address_fault(f"names {host}, {why}") if why else None


def _port_fault(url: httpx.URL) -> Fault | None:
    if url.port is None or url.port in _PORTS:
        return None
    return Fault("url", f"names port {url.port}, where no webhook is received", "use 80, 443 or 1024 to 65535")


def _address_fault(what: str) -> Fault:
    return Fault("url", what, "use a public address; others need a key for all bots, and the setting WEBHOOK_ALLOW_PRIVATE")


def _invalid(fault: Fault) -> Invalid:
    return Invalid(f"The webhook URL {fault.what}.", hint=fault.hint, faults=(fault,))
