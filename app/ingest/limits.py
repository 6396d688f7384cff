"""Rates of requests: which of them a request spends, and the refusal of one that exceeds them.

Each key and each bot has a rate of entries and one of their bytes, each key one of other requests. The settings give the rates.
"""

from math import floor

from msgspec import Struct

from app.errors import RateLimited
from app.live.rates import Rates, Spent
from app.metrics import RATE_LIMITED
from app.settings import Settings

Spendings = list[tuple[str, Spent]]
"""Kind of a rate (`entries`, `bytes`, `requests`), and what was spent of it."""


class Allowed(Struct, frozen=True):
    """How many of the entries that were posted may be taken, the first ones."""

    entries: int
    spent: Spendings


class RateLimits:
    """The rates of the requests to one process."""

    def __init__(self, rates: Rates, settings: Settings) -> None:
        self._rates = rates
        self._entries_per_s = settings.rate_entries
        self._bytes_per_s = settings.rate_bytes
        self._requests_per_s = settings.rate_requests

    def check_entries(self, key: str, bot: str) -> None:
        """Raise `RateLimited` if the key or the bot is known to have spent a rate of entries: the body need not be read."""
        if any(self._rates.is_spent(f"{kind}:{owner}") for owner in (key, bot) for kind in ("entries", "bytes")):
            raise over_rate("entries")

    async def spend_entries(self, key: str, bot: str, *, entries: int, size: int) -> Allowed:
        """Spend the rates of the entries of a body of `size` bytes; raises `RateLimited` if not one of them may be taken."""
        allowed, spent = entries, Spendings()
        for owner in (key, bot):
            of_bytes = await self._rates.spend(f"bytes:{owner}", per_s=self._bytes_per_s, wanted=size)
            allowed = min(allowed, floor(entries * of_bytes.allowed / size) if size else entries)
            of_entries = await self._rates.spend(f"entries:{owner}", per_s=self._entries_per_s, wanted=allowed)
            allowed = min(allowed, of_entries.allowed)
            spent += [("entries", of_entries), ("bytes", of_bytes)]
        if entries and not allowed:
            raise over_rate("entries")
        return Allowed(allowed, spent)

    async def spend_request(self, key: str) -> Spendings:
        """Count a request that posts no entries; raises `RateLimited` where there are too many."""
        spent = await self._rates.spend(f"requests:{key}", per_s=self._requests_per_s, wanted=1)
        if not spent.allowed:
            raise over_rate("requests")
        return [("requests", spent)]


def over_rate(kind: str) -> RateLimited:
    """The refusal of a request, or of an entry of a batch, beyond a rate."""
    RATE_LIMITED.labels(kind).inc()
    return RateLimited(f"too many {kind} a second", hint="slow down, and send what was refused again", retry_after_s=1)
