"""Rates of requests and quotas: which of them a request spends, the headers that show it, and the refusal beyond them.

Each key and each bot has a rate of entries and one of their bytes, each key one of other requests. The settings give the rates
where an admin gave the key or the bot none of its own.
"""

from functools import lru_cache
from math import floor

from msgspec import Struct

from app.config.follower import ConfigReplica
from app.config.records import BotConfig, KeyConfig
from app.errors import Conflict, RateLimited
from app.live.rates import BURST_S, Rates, Slices, Spent
from app.metrics import RATE_LIMITED
from app.settings import Settings

_MOST_ADMISSIONS = 4_096

Spendings = list[tuple[str, Spent]]
"""Kind of a rate (`entries`, `bytes`, `requests`), and what was spent of it."""


class Allowed(Struct, frozen=True):
    """How many of the entries that were posted may be taken, the first ones."""

    entries: int
    over: str  # the kind of the rate that the others exceed
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
    """The rates of the requests to one process. A key's own limits, and a bot's, stand in place of the settings'."""

    def __init__(self, rates: Rates, settings: Settings) -> None:
        self._rates = rates
        self._settings = settings

    def check_entries(self, key: KeyConfig, bot: BotConfig) -> None:
        """Raise `RateLimited` if the key or the bot is known to have spent a rate of entries: the body need not be read."""
        for kind in ("entries", "bytes"):
            for name, per_s in self._of(kind, key, bot).items():
                if self._rates.is_spent(name):
                    raise over_rate(kind, [(kind, Spent(0, 0, per_s))])

    async def spend_entries(self, key: KeyConfig, bot: BotConfig, *, entries: int, size: int) -> Allowed:
        """Spend the rates of the entries of a body of `size` bytes; raises `RateLimited` if not one of them may be taken."""
        allowed, over, spent = entries, "entries", Spendings()
        rates = zip(self._of("bytes", key, bot).items(), self._of("entries", key, bot).items(), strict=True)
        for (bytes_of, bytes_per_s), (entries_of, entries_per_s) in rates:
            of_bytes = await self._rates.spend(bytes_of, per_s=bytes_per_s, wanted=size)
            paid = floor(entries * of_bytes.allowed / size) if size else entries
            if paid < allowed:
                allowed, over = paid, "bytes"
            of_entries = await self._rates.spend(entries_of, per_s=entries_per_s, wanted=allowed)
            if of_entries.allowed < allowed:
                allowed, over = of_entries.allowed, "entries"
            spent += [("entries", of_entries), ("bytes", of_bytes)]
        if entries and not allowed:
            raise over_rate(over, spent)
        return Allowed(allowed, over, spent)

    def held_by(self, key: KeyConfig, bot: BotConfig) -> HeldRates:
        """The rates of entries that this key and this bot spend, as far as this process has taken them already."""
        return HeldRates(*(self._rates.slices_of(self._of(kind, key, bot)) for kind in ("entries", "bytes")))

    async def spend_request(self, key: KeyConfig) -> Spendings:
        """Count a request that posts no entries; raises `RateLimited` where there are too many."""
        per_s = key.limits.get("rate_requests", self._settings.rate_requests)
        spent = await self._rates.spend(f"requests:key:{key.id}", per_s=per_s, wanted=1)
        if not spent.allowed:
            raise over_rate("requests", [("requests", spent)])
        return [("requests", spent)]

    def _of(self, kind: str, key: KeyConfig, bot: BotConfig) -> dict[str, int]:
        """The rates of this kind of a key and of a bot, by name."""
        limit = f"rate_{kind}"
        of_key = key.limits.get(limit, getattr(self._settings, limit))
        return {f"{kind}:key:{key.id}": of_key, f"{kind}:bot:{bot.id}": getattr(bot.limits, limit)}


def over_rate(kind: str, spent: Spendings) -> RateLimited:
    """The refusal of a request, or of an entry of a batch, beyond a rate."""
    RATE_LIMITED.labels(kind).inc()
    return RateLimited(
        f"too many {kind} a second",
        hint="slow down, and send what was refused again",
        retry_after_s=1,
        headers=rate_headers(spent),
    )


def over_quota(limit: str, most: int, what: str) -> Conflict:
    """The refusal of a bot, a key or an endpoint too many. `limit` names the setting."""
    RATE_LIMITED.labels(limit.removeprefix("max_")).inc()
    return Conflict(f"there are {most} {what} already", hint=f"delete one, or have `{limit}` raised")


def rate_headers(spent: Spendings) -> list[tuple[bytes, bytes]]:
    """The headers of draft-ietf-httpapi-ratelimit-headers: of each kind of rate the one of which least is left."""
    least: dict[str, Spent] = {}
    for kind, each in spent:
        if each.per_s and (kind not in least or each.left < least[kind].left):
            least[kind] = each
    if not least:
        return []
    policy = _policy(tuple([(kind, each.per_s) for kind, each in least.items()]))
    state = ", ".join([f'"{kind}";r={each.left};t={each.full_after_s}' for kind, each in least.items()])
    return [(b"ratelimit-policy", policy), (b"ratelimit", state.encode())]


@lru_cache(maxsize=256)
def _policy(rates: tuple[tuple[str, int], ...]) -> bytes:
    return ", ".join(f'"{kind}";q={per_s * BURST_S};w={BURST_S}' for kind, per_s in rates).encode()
