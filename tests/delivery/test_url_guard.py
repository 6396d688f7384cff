"""No webhook goes to an address that is not permitted, in any form of host name or address."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network, ip_address

import httpcore
import pytest

from app.clock import wall_ms
from app.delivery.secret_box import SecretBox
from app.delivery.sender import Delivered, Retry, Sender, SignedWebhook, trusted_tls
from app.delivery.special_addresses import RANGES, AddressKind, refusal
from app.delivery.url_guard import AddressRefused, GuardedNetwork, Resolver, check_destination, check_url
from app.errors import Invalid
from app.ids import new_webhook_secret
from tests.receiver import Receiver


class ScriptedResolver(Resolver):
    """Answers as a name server would that its owner changes between two questions."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        super().__init__(threads=1)
        self.answers = list(answers)
        self.asked: list[str] = []

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        del port
        self.asked.append(host)
        return self.answers.pop(0)


PUBLIC = ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808")
PRIVATE = (
    "127.0.0.1",
    "127.255.255.254",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "::1",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:808:808::",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    "::127.0.0.1",
    "4000::1",
)
NEVER = (
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",  # a local translation prefix of 96 bits, and below of 64, 56 and 48
    "64:ff9b:1:0:a9:fea9:fe00:0",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::f7f7:f7f7",
    "2001:0:808:808::5601:5601",
    "fe80::1",
    "fe80::a9fe:a9fe%eth0",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "0.1.2.3",
    "0.0.0.0",  # noqa: S104 - not bound to, but refused
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    """The guard lets through what webhooks are for."""
    assert refusal(ip_address(address), allow_private=False) == ""


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(address: str) -> None:
    """Private, loopback, shared, reserved and documentation addresses, and IPv6 forms that lead to them."""
    assert refusal(ip_address(address), allow_private=False) != ""
    assert refusal(ip_address(address), allow_private=True) == ""


@pytest.mark.parametrize("address", PRIVATE + NEVER)
def test_loopback_alone_can_be_allowed(address: str) -> None:
    """A local installation's receivers are on its own machine; other private addresses are refused in any form."""
    own = {"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"}

    assert (refusal(ip_address(address), allow_private="loopback") == "") is (address in own)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_refused_whatever_is_allowed(address: str) -> None:
    """Cloud metadata, link-local, multicast, unspecified, broadcast: no closed network has a receiver there."""
    assert refusal(ip_address(address), allow_private=False) != ""
    assert refusal(ip_address(address), allow_private=True) != ""


# The addresses just outside the table's ranges that have no special purpose.
NEIGHBOURS = {
    "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255",
    "192.0.1.0", "192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0",
    "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0",
    "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::",
    "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::",
    "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::",
}  # fmt: skip


@pytest.mark.parametrize(("network", "kind"), RANGES, ids=str)
def test_a_range_is_refused_from_its_first_address_to_its_last(network: IPv4Network | IPv6Network, kind: AddressKind) -> None:
    """Without permission each range is closed; link-local, metadata and multicast stay closed with it."""
    for address in (network[0], network[-1]):
        assert refusal(address, allow_private=False) != ""
        assert kind < AddressKind.UNREACHABLE or refusal(address, allow_private=True) != ""


def test_ranges_end_where_the_registries_say() -> None:
    """Of the addresses beside the ranges, exactly these are ordinary ones."""
    beside = {network[0] - 1 for network, _ in RANGES if int(network[0]) > 0}
    beside |= {network[-1] + 1 for network, _ in RANGES if set(network[-1].packed) != {0xFF}}

    assert {str(address) for address in beside if not refusal(address, allow_private=False)} == NEIGHBOURS


@pytest.mark.parametrize(
    "url",
    (
        "https://example.com/hooks",
        "http://example.com",
        "https://example.com:8443/a?b=c",
        "https://münchen.example/",
        "https://8.8.8.8/",
    ),
)
def test_ordinary_urls_are_accepted(url: str) -> None:
    """Names, ports, queries, international names and public addresses."""
    check_url(url, allow_private=False)


@pytest.mark.parametrize(
    ("url", "word"),
    (
        ("", "scheme"),
        ("example.com/hooks", "scheme"),
        ("ftp://example.com/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("https://user:pass@example.com/", "password"),
        ("https://example.com/#part", "fragment"),
        ("https:///hooks", "host"),
        ("https://exa mple.com/", "host"),
        ("https://*.example.com/", "host"),
        ("https://" + "a" * 300 + ".com/", "host"),
        ("https://" + "a" * 64 + ".example/", "host"),
        ("https://" + "é" * 60 + ".example/", "URL"),
        ("https://two..dots.example/", "host"),
        ("https://.example/", "host"),
        ("https://\ud800.example/", "URL"),
        ("https://\u2488example/", "URL"),
        ("https://example.com:0/", "port"),
        ("https://example.com:25/", "port"),
        ("https://example.com:70000/", "port"),
        ("https://example.com:abc/", "URL"),
        ("https://exam\nple.com/", "URL"),
        ("https://example.com/" + "a" * 2048, "longer"),
        ("http://127.0.0.1/", "private"),
        ("http://[::1]/", "private"),
        ("http://169.254.169.254/latest/meta-data", "credentials"),
    ),
)
def test_other_urls_are_refused_with_what_is_wrong_and_how_to_mend_it(url: str, word: str) -> None:
    """An admin reads which field, what about it, and what to write instead."""
    with pytest.raises(Invalid) as refused:
        check_url(url, allow_private=False)
    (fault,) = refused.value.faults

    assert fault.where == "url"
    assert word in fault.what
    assert fault.hint
    assert len(str(refused.value).encode().splitlines()) == 1  # can be encoded, in one line


@pytest.mark.parametrize("host", ("localhost", "127.1", "2130706433", "0x7f.0.0.1"))
async def test_a_name_or_a_strange_form_of_loopback_is_refused_when_saved(host: str) -> None:
    """The resolved address counts, not the text."""
    with pytest.raises(Invalid):
        await check_destination(f"http://{host}:8080/", allow_private=False)


async def test_what_is_allowed_is_accepted_when_saved() -> None:
    """In a closed network `localhost` is a receiver like any other."""
    await check_destination("http://localhost:8080/", allow_private=True)


async def test_a_name_that_does_not_resolve_yet_is_accepted() -> None:
    """It may be made later; it is checked at every connection anyway."""
    await check_destination("https://receiver.invalid/", allow_private=False)


async def test_a_connection_goes_only_to_an_address_that_was_checked() -> None:
    """A name with a public and a private address is never connected to at the private one."""
    network = GuardedNetwork(resolver=ScriptedResolver(("10.0.0.1", "127.0.0.1")), allow_private=False)

    with pytest.raises(AddressRefused, match=r"rebound\.example is 10\.0\.0\.1"):
        await network.connect_tcp("rebound.example", 80)


async def test_what_may_not_go_to_private_addresses_finds_no_open_connection_to_one(receiver: Receiver) -> None:
    """The same host and port, kept alive by an endpoint that may: the other one is refused all the same."""
    sender = Sender(
        resolver=ScriptedResolver(*[("127.0.0.1",)] * 2),
        tls=trusted_tls(),
        allow_private=True,
        deadline_s=5,
        reply_max_bytes=65_536,
        secret_box=SecretBox(()),
    )
    url, secrets = receiver.url(host="rebound.example"), (new_webhook_secret(),)
    first = await sender.send(SignedWebhook("x", url, "{}", secrets), now_ms=wall_ms())
    second = await sender.send(SignedWebhook("y", url, "{}", secrets, private_allowed=False), now_ms=wall_ms())
    await sender.close()

    assert isinstance(first, Delivered)
    assert isinstance(second, Retry)
    assert second.reason == "address_refused"
    assert len(receiver.requests) == 1


async def test_unix_sockets_are_out_of_reach() -> None:
    """There is no way from a URL to a socket of this machine."""
    network = GuardedNetwork(resolver=ScriptedResolver(), allow_private=True)

    with pytest.raises(AddressRefused):
        await network.connect_unix_socket("/run/docker.sock")


async def test_the_next_address_is_tried_if_one_does_not_answer(receiver: Receiver) -> None:
    """A name with an address that is down is still reached at its other one."""
    network = GuardedNetwork(resolver=ScriptedResolver(("127.0.0.9", "127.0.0.1")), allow_private=True)
    stream = await network.connect_tcp("two.example", receiver.port)
    address = stream.get_extra_info("server_addr")
    await stream.aclose()

    assert address[0] == "127.0.0.1"


async def test_no_address_at_all_is_a_connect_error() -> None:
    """It becomes an outcome like a closed port."""
    resolver = Resolver(threads=1)
    for host in ("receiver.invalid", "a" * 64 + ".example", "two..dots.example"):
        with pytest.raises(httpcore.ConnectError, match="does not resolve"):
            await resolver.addresses(host, 80)
    resolver.close()


@pytest.fixture
async def rebinding(receiver: Receiver) -> AsyncIterator[tuple[Sender, ScriptedResolver, SignedWebhook]]:
    resolver = ScriptedResolver(("127.0.0.1",), ("169.254.169.254",))
    sender = Sender(
        resolver=resolver, tls=trusted_tls(), allow_private=True, deadline_s=5, reply_max_bytes=65_536, secret_box=SecretBox(())
    )
    yield sender, resolver, SignedWebhook("x", receiver.url(host="rebound.example"), "{}", (new_webhook_secret(),))
    await sender.close()


async def test_a_name_that_moves_between_check_and_connection_is_refused(
    rebinding: tuple[Sender, ScriptedResolver, SignedWebhook], receiver: Receiver
) -> None:
    """DNS rebinding: each new connection asks once, and goes to what was checked or nowhere."""
    sender, resolver, webhook = rebinding
    receiver.behave("/hook", lambda exchange: exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
    first = await sender.send(webhook, now_ms=wall_ms())
    second = await sender.send(webhook, now_ms=wall_ms())

    assert first == Delivered(200, "")
    assert isinstance(second, Retry)
    assert second.reason == "address_refused"
    assert resolver.asked == ["rebound.example", "rebound.example"]
    assert len(receiver.requests) == 1
