"""What every process knows of bots, keys and endpoints, without asking Postgres.

    Postgres ── app.config.publish ──> hash in Redis + stream of changes ── follow ──> each process's own dictionaries

A *mark* (which database, which revision) says how far a copy is. Every change in the stream names the mark that it starts from,
so a follower that missed one notices and reads the whole hash again. An empty Redis changes nothing that is known: a process
goes on with what it has until the hash is written again. No secret is kept here, neither of keys (only digests) nor of endpoints.
"""

import asyncio
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import structlog
from msgspec import DecodeError, Struct, json
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.clock import monotonic_ms
from app.domain.errors import InvalidPolicy
from app.domain.policy.parse import Policy, PolicyVersion, policy_from
from app.domain.records import BotRules
from app.live import keys

ClockMode = Literal["manual", "sent_at"]

BLOCK_MS = 400  # less than any socket's timeout, and a missed change is noticed after this
RETRY_S = 0.25
SILENT_MS = 10_000
CHANGES_KEPT = 1_000
MARK = b"mark"

_MOVE = resources.files("app.config").joinpath("publish.lua").read_text()
_log = structlog.get_logger()


class Mark(Struct, frozen=True):
    """How far a copy of the configuration is: which database, which revision of it."""

    instance: str
    revision: int

    def __str__(self) -> str:
        return f"{self.instance}:{self.revision}"

    def covers(self, other: "Mark") -> bool:
        return self.instance == other.instance and self.revision >= other.revision

    @classmethod
    def read(cls, stored: bytes) -> "Mark":
        instance, _, revision = stored.decode().partition(":")
        return cls(instance, int(revision))


class EndpointConfig(Struct, frozen=True):
    """An enabled endpoint of a bot; its address and secret are read from Postgres by those who send."""

    id: str
    events: tuple[str, ...]


class BotConfig(Struct, frozen=True):
    """A bot as processes know it."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    deleted: bool
    rules: BotRules
    endpoints: tuple[EndpointConfig, ...]
    subscribed: frozenset[str]


class KeyConfig(Struct, frozen=True):
    """A key that is not revoked. `bots` None: all of them."""

    id: str
    name: str
    scopes: frozenset[str]
    bots: frozenset[str] | None


class BotRecord(Struct, frozen=True):
    """A bot as kept in the hash. `policy` is what its admin saved."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    deleted: bool
    policy_version: int
    effective_at_ms: int
    policy: dict[str, Any]
    endpoints: tuple[EndpointConfig, ...]


class ConfigReplica:
    """One per process; `follow` keeps it up to date, all else only reads."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's types name every form that a reply may take; here it is RESP2, undecoded.
        self._redis: Any = redis
        self._bots: dict[str, BotConfig] = {}
        self._keys: dict[bytes, KeyConfig] = {}
        self._unreadable: dict[bytes, bytes] = {}
        self._mark: Mark | None = None
        self._last_change: bytes = b"0-0"
        self._moved = asyncio.Condition()
        self._heard_ms = monotonic_ms()

    @property
    def loaded(self) -> bool:
        """False until the hash was read once: nothing can be said of anybody before."""
        return self._mark is not None

    @property
    def shortcomings(self) -> str:
        """Why this process may not know everything, in words; empty if it does."""
        if not self.loaded:
            return "bots and keys are not known yet"
        silent_ms = monotonic_ms() - self._heard_ms
        if silent_ms > SILENT_MS:
            return f"nothing was heard of changes for {silent_ms / 1000:.0f} s"
        if self._unreadable:
            return f"{len(self._unreadable)} of the bots and keys cannot be read by this version"
        return ""

    def is_unreadable(self, bot: str) -> bool:
        """Whether there is something of this name that this version cannot read, and never could."""
        return bot not in self._bots and b"bot:" + bot.encode() in self._unreadable

    def is_unreadable_key(self, digest: bytes) -> bool:
        """The same of a key."""
        return digest not in self._keys and b"key:" + digest.hex().encode() in self._unreadable

    def bot(self, bot: str) -> BotConfig | None:
        known = self._bots.get(bot)
        return known if known is not None and not known.deleted else None

    def known(self, bot: str) -> BotConfig | None:
        """A bot, a deleted one too: its open sessions still close by its rules."""
        return self._bots.get(bot)

    def bots(self) -> list[BotConfig]:
        return [known for known in self._bots.values() if not known.deleted]

    def ever_known(self) -> list[BotConfig]:
        """All bots, the deleted ones too: sessions of theirs may still be open."""
        return list(self._bots.values())

    def sandbox_bots(self) -> list[BotConfig]:
        return [known for known in self.bots() if known.sandbox]

    def key(self, digest: bytes) -> KeyConfig | None:
        return self._keys.get(digest)

    async def caught_up(self, mark: Mark, *, timeout_s: float) -> bool:
        """Wait until this process knows everything up to `mark`; False if it did not within the time."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._mark is not None and self._mark.covers(mark))
        except TimeoutError:
            return False
        return True

    async def load(self) -> None:
        """Read everything. Raises what redis-py raises."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xrevrange(keys.CONFIG_CHANGES, count=1)
            pipe.hgetall(keys.CONFIG)
            latest, stored = await pipe.execute()
        if MARK not in stored:
            return
        mark = Mark.read(stored[MARK])
        self._forget_all_but(stored)
        self._take(stored)
        self._last_change = latest[0][0] if latest else b"0-0"
        await self._move_to(mark)

    async def follow(self) -> None:
        """Keep up with the changes for ever: Redis being away is waited for, and no error ends it."""
        while True:
            try:
                await self.load()
                while await self._advance():
                    pass
            except (RedisError, OSError) as error:
                _log.warning("directory.redis_away", error=str(error))
                await asyncio.sleep(RETRY_S)
            except Exception:  # noqa: BLE001 - logged with its trace
                # Whatever it was, going on with what is known is better than to be deaf to changes from now on.
                _log.exception("directory.failed")
                await asyncio.sleep(RETRY_S)

    async def _advance(self) -> bool:
        """Take in what changes within the next moment. False: something was missed, everything must be read again."""
        _end_if_cancelled()
        streams = await self._redis.xread({keys.CONFIG_CHANGES: self._last_change}, block=BLOCK_MS)
        if not streams:
            return await self._in_step()
        for change, entry in streams[0][1]:
            if entry[b"to"].decode() != str(self._mark) and not await self._follow_change(entry):
                return False
            self._last_change = change
        return True

    async def _in_step(self) -> bool:
        """Nothing came: was there really nothing, or has the stream been lost?"""
        mark = await self._redis.hget(keys.CONFIG, MARK.decode())
        self._heard_ms = monotonic_ms()
        return mark is None or Mark.read(mark) == self._mark

    async def _follow_change(self, entry: Mapping[bytes, bytes]) -> bool:
        if entry[b"from"].decode() != str(self._mark):
            return False
        names = json.decode(entry[b"fields"], type=list[str])
        values = await self._redis.hmget(keys.CONFIG, names) if names else []
        self._take({name.encode(): value for name, value in zip(names, values, strict=True)})
        await self._move_to(Mark.read(entry[b"to"]))
        return True

    async def _move_to(self, mark: Mark) -> None:
        async with self._moved:
            self._mark = mark
            self._heard_ms = monotonic_ms()
            self._moved.notify_all()

    def _forget_all_but(self, stored: Mapping[bytes, bytes]) -> None:
        self._bots = {bot: known for bot, known in self._bots.items() if b"bot:" + bot.encode() in stored}
        self._keys = {digest: known for digest, known in self._keys.items() if b"key:" + digest.hex().encode() in stored}
        self._unreadable = {name: value for name, value in self._unreadable.items() if name in stored}

    def _take(self, fields: Mapping[bytes, bytes | None]) -> None:
        """What cannot be read, since a newer version wrote it, stays as it was known, and concerns nobody else."""
        for name, value in fields.items():
            try:
                self._take_one(name, value)
            except ValueError as error:
                if self._unreadable.get(name) != value:
                    _log.error("directory.record_unreadable", record=name.decode(errors="replace"), error=str(error))
                self._unreadable[name] = value or b""
            else:
                self._unreadable.pop(name, None)

    def _take_one(self, name: bytes, value: bytes | None) -> None:
        kind, _, name_of = name.partition(b":")
        if kind == b"bot" and value is not None:
            bot = _known_bot(value)
            self._bots[bot.id] = bot
        elif kind == b"key" and value is not None:
            self._keys[bytes.fromhex(name_of.decode())] = json.decode(value, type=KeyConfig)
        elif kind == b"key":
            self._keys.pop(bytes.fromhex(name_of.decode()), None)


def _end_if_cancelled() -> None:
    """Python 3.11's `wait_for`, by which redis-py sends, swallows a cancellation that arrives as the sending ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def mark_held(redis: Redis) -> Mark | None:
    """How far the copy in Redis is; None if there is none."""
    stored: Any = await redis.hget(keys.CONFIG, MARK.decode())
    return Mark.read(stored) if stored is not None else None


async def move(
    redis: Redis,
    *,
    held: Mark | None,
    to: Mark,
    bots: Sequence[BotRecord],
    known_keys: Mapping[bytes, KeyConfig | None],
    whole: bool,
) -> bool:
    """Bring the copy in Redis from `held` to `to`; `known_keys` by digest, None for one that was revoked.

    `whole`: this is everything, and what else is there goes. False if somebody else moved the copy in the meantime.
    """
    fields = {f"bot:{bot.id}": json.encode(bot) for bot in bots}
    fields |= {f"key:{digest.hex()}": json.encode(key) if key else b"" for digest, key in known_keys.items()}
    moved: int = await redis.eval(
        _MOVE,
        2,
        keys.CONFIG,
        keys.CONFIG_CHANGES,
        str(held) if held else "",
        str(to),
        "1" if whole else "0",
        CHANGES_KEPT,
        json.encode(list(fields)),
        *(item for pair in fields.items() for item in pair),
    )
    return moved == 1


def _known_bot(value: bytes) -> BotConfig:
    record = json.decode(value, type=BotRecord)
    version = PolicyVersion(record.policy_version, record.effective_at_ms, _policy(record))
    return BotConfig(
        id=record.id,
        name=record.name,
        sandbox=record.sandbox,
        clock_mode=record.clock_mode,
        deleted=record.deleted,
        rules=BotRules(record.id, version),
        endpoints=record.endpoints,
        subscribed=frozenset(event for endpoint in record.endpoints for event in endpoint.events),
    )


def _policy(record: BotRecord) -> Policy:
    """What an older version accepted and this one does not falls back to the default: a bot without rules would be worse."""
    try:
        return policy_from(record.policy)
    except (InvalidPolicy, DecodeError) as error:
        _log.error("directory.policy_refused", bot=record.id, version=record.policy_version, error=str(error))
        return Policy()
