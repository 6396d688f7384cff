"""No webhook goes where none should, by whatever name or form the place is given."""

from collections.abc import AsyncIterator
from ipaddress import ip_address

import httpcore
import pytest

from app.clock import wall_ms
from app.delivery.sender import Delivered, Retry, Sender, SignedWebhook, trusted_tls
from app.delivery.url_guard import AddressRefused, GuardedNetwork, Resolver, check_destination, check_url, refusal
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


PUBLIC = ("8.8.8.8", "2001:4860:4860::8888")
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
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    "::127.0.0.1",
)
NEVER = (
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fd00:ec2::254",
    "168.63.129.16",
    "100.100.100.200",
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
    """A trial's receivers are on its own machine, in whatever form that is written; the network around it is not for trials."""
    own = {"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"}

    assert (refusal(ip_address(address), allow_private="loopback") == "") is (address in own)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_refused_whatever_is_allowed(address: str) -> None:
    """Cloud metadata, link-local, multicast, unspecified, broadcast: no closed network has a receiver there."""
    assert refusal(ip_address(address), allow_private=False) != ""
    assert refusal(ip_address(address), allow_private=True) != ""


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


@pytest.mark.parametrize("host", ("localhost", "127.1", "2130706433", "0x7f.0.0.1"))
async def test_a_name_or_a_strange_form_of_loopback_is_refused_when_saved(host: str) -> None:
    """What the resolver makes of it counts, not how it looks."""
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
    with pytest.raises(httpcore.ConnectError):
        await resolver.addresses("receiver.invalid", 80)
    resolver.close()


@pytest.fixture
async def rebinding(receiver: Receiver) -> AsyncIterator[tuple[Sender, ScriptedResolver, SignedWebhook]]:
    resolver = ScriptedResolver(("127.0.0.1",), ("169.254.169.254",))
    sender = Sender(resolver=resolver, tls=trusted_tls(), allow_private=True, deadline_s=5, reply_max_bytes=65_536)
    yield sender, resolver, SignedWebhook("x", receiver.url(host="rebound.example"), "{}", (new_webhook_secret(),))
    await sender.close()


async def test_a_name_that_moves_between_check_and_connection_is_refused(
    rebinding: tuple[Sender, ScriptedResolver, SignedWebhook], receiver: Receiver
) -> None:
    """DNS rebinding: each new connection asks once, and goes to what was checked or nowhere."""
    sender, resolver, letter = rebinding
    receiver.behave("/hook", lambda exchange: exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
    first = await sender.send(letter, now_ms=wall_ms())
    second = await sender.send(letter, now_ms=wall_ms())

    assert first == Delivered(200, "")
    assert isinstance(second, Retry)
    assert second.reason == "address_refused"
    assert resolver.asked == ["rebound.example", "rebound.example"]
    assert len(receiver.requests) == 1
