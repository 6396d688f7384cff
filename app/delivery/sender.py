"""Sends one webhook once, and returns its outcome. Retries are decided elsewhere.

Every behaviour of a receiver becomes a value of `SendOutcome`; only cancellation is raised. A webhook counts as delivered when
the status is 2xx and the reply ended, or its first 64 KB arrived. Redirects are not followed. The reply is never decompressed,
and nothing after the 64 KB is read: the connection is dropped.
"""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Self

import httpcore
import httpx
import structlog
from msgspec import Struct
from standardwebhooks import Webhook

from app.delivery.secret_box import SecretBox
from app.delivery.url_guard import AddressRefused, GuardedNetwork, Resolver
from app.log import redacted
from app.settings import PrivateAddresses, Settings

log = structlog.get_logger(__name__)

KEEPALIVE_S = 5.0
_GONE = 410
_HEADERS = [
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"user-agent", f"Adjourn/{version('adjourn')}".encode()),
    # Replies are not decompressed, so the kept beginning is readable only if the receiver did not compress it.
    (b"accept-encoding", b"identity"),
]
KEPT_BYTES = 1024
_MAX_DIGITS = 10


class ReceiverReply:
    """The part of a reply that has arrived; it stays readable if reading it fails."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None
        self._beginning = b""

    async def read(self, response: httpcore.Response, *, limit: int) -> None:
        """Read up to `limit` raw bytes: decompressed, 64 KB may be 64 MB. Returning early drops the connection."""
        left = limit
        async for chunk in response.aiter_stream():
            self._beginning += chunk[: KEPT_BYTES - len(self._beginning)]
            left -= len(chunk)
            if left <= 0:
                return

    def text(self) -> str:
        """The beginning of the reply, without secrets: a receiver may echo what it got."""
        return str(redacted(plain(self._beginning.decode(errors="replace"))))


def retry_after_s(header: str | None, *, now_ms: int) -> int | None:
    """The wait that a `Retry-After` asks for: seconds or a date (RFC 9110, 10.2.3); None if it is missing or unreadable."""
    header = (header or "").strip()
    if header.isascii() and header.isdecimal():
        return int(header[:_MAX_DIGITS])
    try:
        at = parsedate_to_datetime(header)
        aware = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0, int(aware.timestamp()) - now_ms // 1000)
    except (ValueError, OverflowError):
        return None


def plain(text: str) -> str:
    """The text without NUL and without lone surrogates, which Postgres refuses."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


class SignedWebhook(Struct, frozen=True):
    """One webhook to send. `secrets` as they are stored: the current one first, then the previous one while it is still accepted.

    Without `private_allowed` it goes to public addresses only, also if the sender may reach others.
    """

    id: str
    url: str
    body: str
    secrets: tuple[str, ...]
    private_allowed: bool = True


class Delivered(Struct, frozen=True):
    """The receiver accepted it."""

    status: int
    reply: str = ""


class Retry(Struct, frozen=True):
    """A failure that may be temporary. `reason` is a metric label, `detail` a text for people."""

    reason: str
    detail: str
    status: int | None = None
    reply: str = ""
    retry_after_s: int | None = None


class Gone(Struct, frozen=True):
    """The receiver answered 410 Gone: the endpoint no longer exists."""

    reply: str = ""
    status: int = _GONE


SendOutcome = Delivered | Retry | Gone

_FAILURES = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


class Sender:
    """The connections of one send at a time, reused: one pool shared by 100 tasks was 4.4 times slower.

    It is httpcore's pool without httpx, which takes as long again for what a webhook has no use for: cookies, which would go to
    another endpoint on the same host, redirects, and proxies, which would connect without the address check.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        tls: ssl.SSLContext,
        allow_private: PrivateAddresses,
        deadline_s: float,
        reply_max_bytes: int,
        secret_box: SecretBox,
    ) -> None:
        self._pool = _pool(GuardedNetwork(resolver=resolver, allow_private=allow_private), tls)
        # Connections are reused, so endpoints that may reach private addresses do not share a pool with those that may not.
        self._public = _pool(GuardedNetwork(resolver=resolver, allow_private=False), tls) if allow_private else self._pool
        self._deadline_s = deadline_s
        self._reply_max_bytes = reply_max_bytes
        self._secret_box = secret_box

    @classmethod
    def of(cls, settings: Settings, *, resolver: Resolver, tls: ssl.SSLContext) -> Self:
        """A sender as the settings say."""
        return cls(
            resolver=resolver,
            tls=tls,
            allow_private=settings.private_webhooks_allowed,
            deadline_s=settings.delivery_timeout_s,
            reply_max_bytes=settings.delivery_reply_max_bytes,
            secret_box=SecretBox.of(settings),
        )

    async def close(self) -> None:
        await self._pool.aclose()
        await self._public.aclose()

    async def send(self, webhook: SignedWebhook, *, now_ms: int) -> SendOutcome:
        """POST it, signed at `now_ms`; never raises but for cancellation."""
        reply = ReceiverReply()
        try:
            # One deadline for the whole exchange: a timeout per read would let a slow drip go on for ever.
            async with asyncio.timeout(self._deadline_s):
                await self._post(webhook, reply, now_ms=now_ms)
        except TimeoutError:
            return _verdict(reply, Retry("timeout", f"no complete answer within {self._deadline_s:g} s"), now_ms=now_ms)
        except AddressRefused as refused:
            return Retry("address_refused", str(refused))
        except (*_FAILURES, httpx.InvalidURL) as failed:
            return _verdict(reply, _failure(failed), now_ms=now_ms)
        except Exception as surprise:
            log.exception("unexpected error while sending a webhook", delivery=webhook.id)
            return _verdict(reply, Retry("unexpected", _words(surprise)), now_ms=now_ms)
        return _verdict(reply, None, now_ms=now_ms)

    async def _post(self, webhook: SignedWebhook, reply: ReceiverReply, *, now_ms: int) -> None:
        secrets = [self._secret_box.decrypt(secret) for secret in webhook.secrets]
        body, (url, host) = webhook.body.encode(), _target(webhook.url)
        signed = [(name.encode(), value.encode()) for name, value in signed_headers(webhook, secrets, now_ms=now_ms).items()]
        headers = [(b"host", host), *_HEADERS, *signed, (b"content-length", b"%d" % len(body))]
        pool = self._pool if webhook.private_allowed else self._public
        async with pool.stream("POST", url, headers=headers, content=body) as response:
            reply.status = response.status
            reply.retry_after = next(
                (value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after"), None
            )
            await reply.read(response, limit=self._reply_max_bytes)


def signed_headers(webhook: SignedWebhook, secrets: Sequence[str], *, now_ms: int) -> dict[str, str]:
    """The three headers of Standard Webhooks; one signature for each secret, so that either verifies."""
    at = datetime.fromtimestamp(now_ms // 1000, UTC)
    signatures = [Webhook(secret).sign(webhook.id, at, webhook.body) for secret in secrets]
    return {
        "webhook-id": webhook.id,
        "webhook-timestamp": str(now_ms // 1000),
        "webhook-signature": " ".join(signatures),
    }


@cache
def trusted_tls() -> ssl.SSLContext:
    """The TLS context: certifi's authorities, or those of `SSL_CERT_FILE`. Made once, since loading it takes 20 ms."""
    return httpx.create_ssl_context()


def _pool(network: httpcore.AsyncNetworkBackend, tls: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
    """Connections without a timeout of their own: the deadline is around the whole send."""
    return httpcore.AsyncConnectionPool(
        ssl_context=tls, max_connections=None, max_keepalive_connections=4, keepalive_expiry=KEEPALIVE_S, network_backend=network
    )


@lru_cache(maxsize=4_096)
def _target(url: str) -> tuple[httpcore.URL, bytes]:
    """The URL, read as the guard reads it, and its `Host`."""
    parsed = httpx.URL(url)
    target = httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
    return target, parsed.netloc


def _verdict(reply: ReceiverReply, broken: Retry | None, *, now_ms: int) -> SendOutcome:
    """The outcome of a reply, and of the error (`broken`) that ended reading it, if there was one.

    An error status counts even if the body is incomplete. A 2xx does not: a receiver that breaks off may not have stored the
    webhook, and one that gets it twice recognises it by its `webhook-id`.
    """
    if reply.status is None:
        return broken or Retry("protocol", "the connection ended without an answer")
    if reply.status == _GONE:
        return Gone(reply.text())
    if not 200 <= reply.status < 300:  # noqa: PLR2004 - the class of success
        wait_s = retry_after_s(reply.retry_after, now_ms=now_ms)
        return Retry(_reason(reply.status), f"answered {reply.status}", reply.status, reply.text(), wait_s)
    if broken is not None:
        return Retry(broken.reason, broken.detail, reply.status, reply.text())
    return Delivered(reply.status, reply.text())


def _reason(status: int) -> str:
    return "redirect" if 300 <= status < 400 else f"{status // 100}xx"  # noqa: PLR2004 - the class of redirects


def _failure(failed: Exception) -> Retry:
    if isinstance(failed, httpcore.ConnectError):
        return Retry("tls" if _is_tls(failed) else "connect", _words(failed))
    if isinstance(failed, httpcore.TimeoutException):
        return Retry("timeout", _words(failed))
    if isinstance(failed, httpcore.NetworkError | httpcore.ProtocolError):
        return Retry("protocol", _words(failed))
    return Retry("unexpected", _words(failed))


def _is_tls(failed: BaseException) -> bool:
    cause: BaseException | None = failed
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _words(failed: BaseException) -> str:
    return f"{type(failed).__name__}: {failed}".removesuffix(": ")[:500]
