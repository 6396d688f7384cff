"""Reads a receiver's reply within bounds: the status, `Retry-After`, the first kilobyte of the body."""

from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

KEPT_BYTES = 1024
_MAX_DIGITS = 10


class ReceiverReply:
    """The part of a reply that has arrived; it stays readable if reading it fails."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None
        self._beginning = b""

    async def read(self, response: httpx.Response, *, limit: int) -> None:
        """Read up to `limit` raw bytes: decompressed, 64 KB may be 64 MB. Returning early drops the connection."""
        left = limit
        async for chunk in response.aiter_raw():
            self._beginning += chunk[: KEPT_BYTES - len(self._beginning)]
            left -= len(chunk)
            if left <= 0:
                return

    def text(self) -> str:
        return plain(self._beginning.decode(errors="replace"))


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
