"""Rates of requests: which of them a request spends, and the refusal of one that exceeds them.

Each key and each bot has a rate of entries and one of their bytes, each key one of other requests. The settings give the rates.
"""

from math import floor

from msgspec import Struct

from app.config.follower import ConfigReplica
from app.config.records import BotConfig, KeyConfig
from app.errors import RateLimited
from app.live.rates import Rates, Slices, Spent
from app.metrics import RATE_LIMITED
from app.settings import Settings

_MOST_ADMISSIONS = 4_096

Spendings = list[tuple[str, Spent]]
"""Kind of a rate (`entries`, `bytes`, `requests`), and what was spent of it."""


class Allowed(Struct, frozen=True):
    """How many of the entries that were posted may be taken, the first ones."""

    entries: int
    spent: Spendings


class HeldRates(Struct, frozen=True):
    """Rates of entries that can be spent without asking Redis."""

    entries: Slices
    bytes: Slices

    def spend(self, size: int) -> Spendings | None:
        """As `RateLimits.spend_entries`, for one entry; None, and nothing is spent, where Redis would have to be asked."""
        if not self.entries.have(1) or not self.bytes.have(size):
            return None
        return [("entries", self.entries.spend(1)), ("bytes", self.bytes.spend(size))]


class Admission(Struct, frozen=True):
    """A request that was let in: by which key, to which bot, and the rates that it spends."""

    key: KeyConfig
    bot: BotConfig
    rates: HeldRates


class Admissions:
    """Requests that were let in, by the header and the path that they came with; none is left once the configuration changes."""

    def __init__(self, config: ConfigReplica) -> None:
        self._config = config
        self._changes = config.changes
        self._known: dict[tuple[bytes, bytes], Admission] = {}

    def add(self, authorization: bytes, path: bytes, admission: Admission) -> None:
        """Let in further requests with this header and this path."""
        if self._changes != self._config.changes or len(self._known) >= _MOST_ADMISSIONS:
            self._known.clear()
            self._changes = self._config.changes
        self._known[authorization, path] = admission

    def find(self, authorization: bytes, path: bytes, *, now_ms: int, max_age_ms: float) -> Admission | None:
        """The admission of such a request; None if its key has to be looked at."""
        config, found = self._config, self._known.get((authorization, path))
        if found is None or self._changes != config.changes or config.age_ms > max_age_ms:
            return None
        if found.key.expires_at_ms is not None and now_ms >= found.key.expires_at_ms:
            return None
        config.used_keys.add(found.key.id)
        return found


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

    def held_by(self, key: str, bot: str) -> HeldRates:
        """The rates of entries that this key and this bot spend, as far as this process has taken them already."""
        return HeldRates(
            self._rates.slices_of(f"entries:{key}", f"entries:{bot}", per_s=self._entries_per_s),
            self._rates.slices_of(f"bytes:{key}", f"bytes:{bot}", per_s=self._bytes_per_s),
        )

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
