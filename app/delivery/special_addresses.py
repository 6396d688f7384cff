"""Addresses that are not ordinary receivers: one table of the special-purpose ranges, and the verdict on an address.

The table copies IANA's registries as of `TABLE_DATE` (IPv4 and IPv6 special-purpose addresses, multicast blocks) and adds the
metadata addresses that clouds publish. It does not depend on the interpreter's `ipaddress` properties, which differ between
versions of Python. Every range of the registries is refused, including those that are globally reachable: none holds a receiver.

An IPv6 address that carries an IPv4 one (mapped, translated, tunnelled) is judged by both. This module resolves no name.
"""

from datetime import date
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from app.settings import PrivateAddresses

TABLE_DATE = date(2025, 6, 1)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressKind(IntEnum):
    """Why a range is refused, the strictest last."""

    PUBLIC = 0
    LOOPBACK = 1  # allowed by `loopback` and `true`
    SPECIAL = 2  # private, reserved or for documentation: allowed by `true`
    UNREACHABLE = 3  # multicast, broadcast, unspecified: always refused
    METADATA = 4  # link-local and metadata services: always refused


REASONS = {
    AddressKind.LOOPBACK: "a private address",
    AddressKind.SPECIAL: "a private address",
    AddressKind.UNREACHABLE: "which no receiver can have",
    AddressKind.METADATA: "where clouds keep their credentials",
}

_TABLE: dict[AddressKind, tuple[str, ...]] = {
    AddressKind.LOOPBACK: ("127.0.0.0/8", "::1/128"),
    AddressKind.SPECIAL: (
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared address space
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112-v4
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # deprecated 6to4 relay anycast
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # direct delegation AS112 service
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "240.0.0.0/4",  # reserved
        "64:ff9b:1::/48",  # local-use IPv4/IPv6 translation
        "100::/64",  # discard-only
        "100:0:0:1::/64",  # dummy prefix
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarking, anycast services
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # direct delegation AS112 service
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing identifiers
        "fc00::/7",  # unique local
        "fec0::/10",  # deprecated site-local
    ),
    AddressKind.UNREACHABLE: (
        "0.0.0.0/8",  # this network
        "224.0.0.0/4",  # multicast
        "255.255.255.255/32",  # limited broadcast
        "::/128",  # unspecified
        "ff00::/8",  # multicast
    ),
    AddressKind.METADATA: (
        "169.254.0.0/16",  # link-local: the metadata service of most clouds
        "fe80::/10",  # link-local
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure, in a range that looks public
        "192.0.0.192/32",  # Oracle Cloud
        "fd00:42::42/128",  # Scaleway
        "fd00:ec2::/32",  # AWS: metadata, time, DNS, pod identity
        "fd20:ce::254/128",  # Google Cloud
    ),
}
RANGES: tuple[tuple[Network, AddressKind], ...] = tuple(
    (ip_network(text), kind) for kind, texts in _TABLE.items() for text in texts
)

_ALLOCATED_IPV6 = IPv6Network("2000::/3")  # all global unicast that IANA has given out
# These lead to the IPv4 address that they carry, wherever the gateway or the kernel translates them.
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
# These may lead there: tunnels that few networks still run, and prefixes of a network's own.
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_TEREDO = IPv6Network("2001::/32")
_6TO4 = IPv6Network("2002::/16")


def refusal(address: Address, *, allow_private: PrivateAddresses) -> str:
    """Why nothing is sent to this address, in words, or an empty string."""
    kind = kind_of(address)
    if kind is AddressKind.PUBLIC:
        return ""
    allowed = {False: AddressKind.PUBLIC, "loopback": AddressKind.LOOPBACK, True: AddressKind.SPECIAL}[allow_private]
    return "" if kind <= allowed else REASONS[kind]


def kind_of(address: Address) -> AddressKind:
    """The strictest kind among the ranges that hold the address or an IPv4 address that it carries."""
    if isinstance(address, IPv6Address) and (address in _MAPPED or address in _NAT64):
        return _own_kind(IPv4Address(int(address) & 0xFFFFFFFF))
    return max(_own_kind(each) for each in (address, *_carried(address)))


def _own_kind(address: Address) -> AddressKind:
    found = max((kind for network, kind in RANGES if address in network), default=AddressKind.PUBLIC)
    unallocated = isinstance(address, IPv6Address) and address not in _ALLOCATED_IPV6
    return AddressKind.SPECIAL if unallocated and found is AddressKind.PUBLIC else found


def _carried(address: Address) -> tuple[IPv4Address, ...]:
    """IPv4 addresses inside an IPv6 one; several where the length of the prefix is not known."""
    if isinstance(address, IPv4Address):
        return ()
    bits = int(address)
    if address in _6TO4:
        return (IPv4Address(bits >> 80 & 0xFFFFFFFF),)
    if address in _TEREDO:  # the server, and the client with its bits inverted
        return IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(~bits & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:
        readings = (_translated(bits, prefix) for prefix in (48, 56, 64, 96))
        return tuple(
            each for each in readings if _own_kind(each) is AddressKind.METADATA
        )  # a wrong reading of another kind says nothing
    return ()


def _translated(bits: int, prefix: int) -> IPv4Address:
    """The IPv4 address behind a translation prefix of this length (RFC 6052): it leaves out bits 64 to 71."""
    without_gap = bits if prefix == 96 else (bits >> 64 << 56 | bits & (1 << 56) - 1) << 8  # noqa: PLR2004 - as in the RFC
    return IPv4Address(without_gap >> (96 - prefix) & 0xFFFFFFFF)
