"""Every behaviour of a receiver becomes an outcome, within the deadline and with bounded memory."""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.clock import wall_ms
from app.delivery.secret_box import SecretBox
from app.delivery.sender import Delivered, Gone, Retry, Sender, SendOutcome, SignedWebhook, trusted_tls
from app.delivery.url_guard import Resolver
from app.ids import new_webhook_secret
from tests.receiver import (
    CERTIFICATE,
    CERTIFICATE_NAME,
    Behaviour,
    Receiver,
    bad_http,
    busy,
    close_mid_reply,
    drip,
    drip_headers,
    flood,
    gone,
    gzip_bomb,
    hang_up,
    redirect,
    reply,
    silence,
)

SECRET = new_webhook_secret()
SHORT_S = 0.4

Make = Callable[..., Sender]
Send = Callable[..., Awaitable[SendOutcome]]


class LocalResolver(Resolver):
    """Every name is on this machine: no test asks a name server."""

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        del host, port
        return ("127.0.0.1",)


@pytest.fixture
async def make_sender() -> AsyncIterator[Make]:
    resolver = LocalResolver(threads=1)
    made: list[Sender] = []

    def make(*, tls: ssl.SSLContext | None = None, deadline_s: float = 10, reply_max_bytes: int = 65_536) -> Sender:
        sender = Sender(
            resolver=resolver,
            tls=tls or trusted_tls(),
            allow_private=True,
            deadline_s=deadline_s,
            reply_max_bytes=reply_max_bytes,
            secret_box=SecretBox(()),
        )
        made.append(sender)
        return sender

    yield make
    for sender in made:
        await sender.close()
    resolver.close()


@pytest.fixture
def send(make_sender: Make) -> Send:
    """Send one webhook with a sender of its own."""

    async def send_to(url: str, *, secrets: tuple[str, ...] = (SECRET,), **options: object) -> SendOutcome:
        return await make_sender(**options).send(SignedWebhook("a-webhook", url, '{"type":"x"}', secrets), now_ms=wall_ms())

    return send_to


async def test_a_webhook_is_genuine_by_the_standard_library_for_it(send: Send, receiver: Receiver) -> None:
    """Id, timestamp and signature are what `standardwebhooks` accepts, and the body is what was signed."""
    outcome = await send(receiver.url())
    (request,) = receiver.requests

    assert outcome == Delivered(200, "ok")
    assert request.verify(SECRET) == {"type": "x"}
    assert request.id == "a-webhook"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("Adjourn/")


async def test_a_changed_body_is_not_genuine(send: Send, receiver: Receiver) -> None:
    """The check above can fail: one byte more and the library refuses it."""
    await send(receiver.url())
    (request,) = receiver.requests

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body + b" ", request.headers)


async def test_while_secrets_overlap_either_verifies(send: Send, receiver: Receiver) -> None:
    """After a rotation receivers with the old secret and with the new one both accept the same request."""
    old = new_webhook_secret()
    await send(receiver.url(), secrets=(SECRET, old))
    (request,) = receiver.requests

    assert request.verify(SECRET) == request.verify(old) == {"type": "x"}
    assert len(request.headers["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize("status", (200, 201, 202, 204, 299))
async def test_any_2xx_is_delivered(send: Send, receiver: Receiver, status: int) -> None:
    """Receivers need not answer 200 exactly."""
    body = b"" if status == 204 else b"ok"

    assert await send(receiver.behave("/hook", reply(status, body))) == Delivered(status, body.decode())


@pytest.mark.parametrize(
    ("status", "reason"), ((300, "redirect"), (400, "4xx"), (404, "4xx"), (429, "4xx"), (500, "5xx"), (503, "5xx"))
)
async def test_any_other_answer_is_a_failure_that_may_pass(send: Send, receiver: Receiver, status: int, reason: str) -> None:
    """Status and reply are stored for the admin."""
    outcome = await send(receiver.behave("/hook", reply(status, b"why")))

    assert outcome == Retry(reason, f"answered {status}", status, "why")


async def test_a_redirect_is_a_failure_and_is_not_followed(send: Send, receiver: Receiver) -> None:
    """A receiver cannot send webhooks on to somewhere that no admin has named."""
    outcome = await send(receiver.behave("/hook", redirect(receiver.url("/elsewhere"))))

    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.status) == ("redirect", 307)
    assert receiver.at("/elsewhere") == []


async def test_410_means_never_again(send: Send, receiver: Receiver) -> None:
    """The one answer that ends an endpoint."""
    assert await send(receiver.behave("/hook", gone())) == Gone("no more")


async def test_retry_after_is_read_as_seconds_or_as_a_date(send: Send, receiver: Receiver) -> None:
    """Both forms of RFC 9110 count; nonsense does not."""
    later = datetime.now(UTC) + timedelta(seconds=90)
    seconds = await send(receiver.behave("/a", busy("120")))
    date = await send(receiver.behave("/b", busy(f"{later:%a, %d %b %Y %H:%M:%S} GMT", status=429)))
    nonsense = await send(receiver.behave("/c", busy("soon")))

    assert isinstance(seconds, Retry)
    assert isinstance(date, Retry)
    assert isinstance(nonsense, Retry)
    assert seconds.retry_after_s == 120
    assert date.retry_after_s in range(85, 92)
    assert nonsense.retry_after_s is None


@pytest.mark.parametrize(
    ("behaviour", "status"),
    ((silence(), None), (drip(), 200), (drip_headers(), None)),
    ids=["never answers", "drips its reply", "drips its headers"],
)
async def test_slowness_of_any_kind_ends_at_the_deadline(
    send: Send, receiver: Receiver, behaviour: Behaviour, status: int | None
) -> None:
    """The deadline is on the whole: many reads that each succeed in time do not lengthen it."""
    url = receiver.behave("/hook", behaviour)
    async with asyncio.timeout(SHORT_S * 10):
        outcome = await send(url, deadline_s=SHORT_S)

    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.status) == ("timeout", status)


async def test_a_refusal_stands_even_if_its_text_never_ends(send: Send, receiver: Receiver) -> None:
    """410 and 500 are understood from the first line."""
    refused = await send(receiver.behave("/a", drip(status=410)), deadline_s=SHORT_S)
    failed = await send(receiver.behave("/b", drip(status=500)), deadline_s=SHORT_S)

    assert isinstance(refused, Gone)
    assert isinstance(failed, Retry)
    assert (failed.reason, failed.status) == ("5xx", 500)


@pytest.mark.parametrize("behaviour", (hang_up(), bad_http(), close_mid_reply()), ids=["hangs up", "no HTTP", "breaks off"])
async def test_broken_answers_are_failures_that_may_pass(send: Send, receiver: Receiver, behaviour: Behaviour) -> None:
    """A success that breaks off in the middle does not count: the receiver may not have kept it."""
    outcome = await send(receiver.behave("/hook", behaviour))

    assert isinstance(outcome, Retry)
    assert outcome.reason == "protocol"


async def test_a_closed_port_is_a_failure_that_may_pass(send: Send) -> None:
    """A receiver that is down is tried again."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    outcome = await send(f"http://127.0.0.1:{port}/")

    assert isinstance(outcome, Retry)
    assert outcome.reason == "connect"


async def test_a_self_signed_certificate_is_refused(send: Send) -> None:
    """Nothing is sent to who cannot prove to be the host of the URL."""
    with Receiver(tls=True) as receiver:
        outcome = await send(receiver.url(host=CERTIFICATE_NAME))

        assert isinstance(outcome, Retry)
        assert outcome.reason == "tls"
        assert receiver.requests == []


async def test_a_trusted_certificate_must_be_of_the_urls_own_name(send: Send) -> None:
    """The address is checked and connected to, yet Host, SNI and the certificate go by the name."""
    tls = ssl.create_default_context(cafile=str(CERTIFICATE))
    with Receiver(tls=True) as receiver:
        right = await send(receiver.url(host=CERTIFICATE_NAME), tls=tls)
        wrong = await send(receiver.url(host="other.test"), tls=tls)
        (request,) = receiver.requests

        assert isinstance(right, Delivered)
        assert request.headers["host"] == f"{CERTIFICATE_NAME}:{receiver.port}"
        assert isinstance(wrong, Retry)
        assert wrong.reason == "tls"


async def test_a_plain_http_server_behind_https_is_a_tls_failure(send: Send) -> None:
    """The most common mistake in a URL is named as what it is."""

    async def complain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(complain, "127.0.0.1", 0) as server:
        outcome = await send(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    assert isinstance(outcome, Retry)
    assert outcome.reason == "tls"


async def test_a_reply_without_end_is_read_to_64_kb_and_dropped(send: Send, receiver: Receiver) -> None:
    """A gigabyte costs neither time nor memory; its first kilobyte is kept."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.timeout(10):
        outcome = await send(receiver.behave("/hook", flood()))
    after_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert isinstance(outcome, Delivered)
    assert outcome.reply == "\ufffd" * 1024  # NULs, which Postgres does not take
    assert after_kb - before_kb < 32 * 1024


async def test_a_compressed_bomb_is_never_unpacked(send: Send, receiver: Receiver) -> None:
    """64 KB that unpack to 64 MB are 64 KB; and no compression is asked for."""
    url = receiver.behave("/hook", gzip_bomb())
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = await send(url)
    after_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert isinstance(outcome, Delivered)
    assert receiver.requests[0].headers["accept-encoding"] == "identity"
    assert after_kb - before_kb < 32 * 1024


async def test_the_first_kilobyte_of_a_reply_is_kept_as_text(send: Send, receiver: Receiver) -> None:
    """Bytes that are no UTF-8 are replaced, and nothing beyond the kilobyte is kept."""
    outcome = await send(receiver.behave("/hook", reply(500, b"\xff" + b"x" * 5000)))

    assert isinstance(outcome, Retry)
    assert outcome.reply == "\ufffd" + "x" * 1023


async def test_a_sender_keeps_its_connection_between_letters(make_sender: Make, receiver: Receiver) -> None:
    """A busy endpoint costs one handshake, not one for each webhook."""
    sender = make_sender()
    for number in range(5):
        await sender.send(SignedWebhook(str(number), receiver.url(), "{}", (SECRET,)), now_ms=wall_ms())

    assert len(receiver.requests) == 5
    assert receiver.connections == 1


async def test_a_sender_goes_on_after_each_kind_of_failure(make_sender: Make, receiver: Receiver) -> None:
    """One client serves all endpoints of its task: what one of them does must not stay in it."""
    sender = make_sender(deadline_s=SHORT_S)
    for path, behaviour in {"/s": silence(), "/d": drip(), "/h": hang_up(), "/b": bad_http(), "/f": flood()}.items():
        await sender.send(SignedWebhook("bad", receiver.behave(path, behaviour), "{}", (SECRET,)), now_ms=wall_ms())
    outcome = await sender.send(SignedWebhook("good", receiver.url(), "{}", (SECRET,)), now_ms=wall_ms())

    assert outcome == Delivered(200, "ok")


async def test_cookies_of_one_endpoint_do_not_go_to_another(make_sender: Make, receiver: Receiver) -> None:
    """Endpoints on one host may belong to different people."""
    sender = make_sender()
    receiver.behave("/hook", reply(200, set_cookie="token=secret; Path=/"))
    for _ in range(2):
        await sender.send(SignedWebhook("x", receiver.url(), "{}", (SECRET,)), now_ms=wall_ms())

    assert [request.headers.get("cookie") for request in receiver.requests] == [None, None]


async def test_a_broken_secret_is_an_outcome_too(send: Send, receiver: Receiver) -> None:
    """Not even what should be impossible ends a sending task."""
    outcome = await send(receiver.url(), secrets=("whsec_",))

    assert isinstance(outcome, Retry)
    assert outcome.reason == "unexpected"


async def test_cancelling_drops_the_connection(make_sender: Make, receiver: Receiver) -> None:
    """A worker that stops does not wait for a receiver that never answers."""
    sending = asyncio.create_task(
        make_sender().send(SignedWebhook("x", receiver.behave("/hook", silence()), "{}", (SECRET,)), now_ms=wall_ms())
    )
    await receiver.until(1)
    sending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sending
