"""The replica of the configuration in each process: requests read it and ask neither Postgres nor Redis.

Every change in the stream names the mark that it starts from, so a follower that missed one notices and reads the whole hash
again. An empty Redis changes nothing in the replica: it stays as it is until the hash is written again. A record that this
version cannot read leaves the earlier one in place and affects no other.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from msgspec import DecodeError, json
from redis.asyncio import Redis

from app.clock import monotonic_ms
from app.config.publish import MARK
from app.config.records import BotConfig, BotLimits, BotRecord, KeyConfig, Mark
from app.domain.errors import InvalidPolicy
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.policy.parse import policy_from
from app.domain.records import BotRules
from app.failures import failure_of
from app.live import keys
from app.live.ledger import BotContext

# Not emitted if no endpoint subscribes. `session.closed` always is: the archivist needs it.
OPTIONAL_EVENTS = frozenset({"session.opened", "session.reminder", "session.closure_message"})

_BLOCK_MS = 400  # less than any socket's timeout, and a missed change is noticed after this
_RETRY_S = 0.25
_SILENT_MS = 10_000
_UNLIMITED = BotLimits()
_log = structlog.get_logger(__name__)


class ConfigReplica:
    """One per process; between `start` and `stop` a task keeps it up to date, all else only reads.

    `defaults` are the limits of a bot that has none of its own.
    """

    def __init__(self, redis: Redis, defaults: BotLimits = _UNLIMITED) -> None:
        # redis-py's types name every form that a reply may have; here it is RESP2, undecoded.
        self._redis: Any = redis
        self._defaults = defaults
        self._bots: dict[str, BotConfig] = {}
        self._contexts: dict[str, BotContext] = {}
        self._keys: dict[bytes, KeyConfig] = {}
        self._unreadable: dict[bytes, bytes] = {}
        self.used_keys: set[str] = set()
        self.changes = 0  # how many times something of the replica has changed, or may have
        self._mark: Mark | None = None
        self._last_change: bytes = b"0-0"
        self._moved = asyncio.Condition()
        self._confirmed_ms = monotonic_ms()
        self._follower: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        """False until the hash was read once: before that, a bot or key that is not here may exist all the same."""
        return self._mark is not None

    @property
    def age_ms(self) -> float:
        """Time since this replica was known to be the copy in Redis; more than half a second means that Redis does not answer."""
        return monotonic_ms() - self._confirmed_ms

    @property
    def warning(self) -> str:
        """Why this process may not know every bot and key, in words; empty if it does."""
        if not self.loaded:
            return "bots and keys are not known yet"
        if self.age_ms > _SILENT_MS:
            return f"the configuration was last read {self.age_ms / 1000:.0f} s ago"
        if self._unreadable:
            return f"{len(self._unreadable)} of the bots and keys cannot be read by this version"
        return ""

    def bot(self, bot: str) -> BotConfig | None:
        """A bot that is not deleted."""
        found = self._bots.get(bot)
        return found if found is not None and not found.deleted else None

    def bot_or_deleted(self, bot: str) -> BotConfig | None:
        return self._bots.get(bot)

    def bots(self) -> list[BotConfig]:
        return [bot for bot in self._bots.values() if not bot.deleted]

    def bots_and_deleted(self) -> list[BotConfig]:
        """All bots there ever were: a deleted one may still have open sessions."""
        return list(self._bots.values())

    def sandbox_bots(self) -> list[BotConfig]:
        return [bot for bot in self.bots() if bot.sandbox]

    def key(self, digest: bytes) -> KeyConfig | None:
        return self._keys.get(digest)

    def take_used_keys(self) -> set[str]:
        """The ids of the keys that requests were accepted with since the last call."""
        used, self.used_keys = self.used_keys, set()
        return used

    def context_of(self, bot: str) -> BotContext:
        """The context of a bot for the ledger. Sessions of a bot that this replica does not have close by the default policy."""
        found = self._contexts.get(bot)
        return (
            found if found is not None else BotContext(BotRules(bot, PolicyVersion(0, 0, Policy()), self._defaults.session_quota))
        )

    def limits_of(self, bot: str) -> BotLimits:
        """The limits of a bot, deleted or not."""
        found = self._bots.get(bot)
        return self._defaults if found is None else found.limits

    def rules_of(self, bot: str) -> BotRules:
        return self.context_of(bot).rules

    def is_unreadable(self, bot: str) -> bool:
        """Whether a bot of this name exists that this version cannot read, and never could."""
        return bot not in self._bots and b"bot:" + bot.encode() in self._unreadable

    def is_unreadable_key(self, digest: bytes) -> bool:
        """Whether a key of this digest exists that this version cannot read, and never could."""
        return digest not in self._keys and b"key:" + digest.hex().encode() in self._unreadable

    async def start(self) -> None:
        """Read everything, then follow in a task. Raises what redis-py raises."""
        await self.load()
        self._follower = asyncio.create_task(self._follow(), name="config replica")

    def log_loaded(self) -> None:
        """Log how much this replica has read, once a process has started for good."""
        _log.info("configuration loaded", bots=len(self._bots), keys=len(self._keys), mark=str(self._mark))

    async def stop(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def caught_up(self, mark: Mark, *, timeout_s: float) -> bool:
        """Wait until this replica includes everything up to `mark`; False if it did not within the time."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._mark is not None and self._mark.covers(mark))
        except TimeoutError:
            return False
        return True

    async def is_current(self, *, max_age_ms: float, timeout_s: float) -> bool:
        """Whether this replica is no older than that, or becomes so within the time: an event loop that was busy catches up."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.age_ms <= max_age_ms)
        except TimeoutError:
            return False
        return True

    async def load(self) -> None:
        """Read the whole copy. Raises what redis-py raises."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xrevrange(keys.CONFIG_CHANGES, count=1)
            pipe.hgetall(keys.CONFIG)
            latest, stored = await pipe.execute()
        if MARK not in stored:
            return
        mark = Mark.read(stored[MARK])
        self._keep_only(stored)
        self._apply(stored)
        self._last_change = latest[0][0] if latest else b"0-0"
        await self._move_to(mark)

    async def run_once(self) -> bool:
        """Apply what changes within the next moment. False: a change was missed, the whole copy must be read again."""
        _end_if_cancelled()
        streams = await self._redis.xread({keys.CONFIG_CHANGES: self._last_change}, block=_BLOCK_MS)
        if not streams:
            return await self._is_current()
        for change, entry in streams[0][1]:
            if entry[b"to"].decode() != str(self._mark) and not await self._apply_change(entry):
                return False
            self._last_change = change
        return True

    async def _follow(self) -> None:
        """Keep up with the changes until `stop`. No error ends it: a replica that is out of date is better than none."""
        while self._follower is not None:  # a cancellation can end the call to Redis alone
            try:
                await self.load()
                while await self.run_once() and self._follower is not None:
                    pass
            except Exception as error:  # noqa: BLE001 - a bug is logged with its traceback, too
                if failure_of(error) == "unreachable":
                    _log.warning("configuration not followed, Redis is unreachable", error=str(error))
                else:
                    _log.exception("configuration not followed")
                await asyncio.sleep(_RETRY_S)

    async def _is_current(self) -> bool:
        """No change arrived: compare marks, since the stream itself may have been lost."""
        mark = await self._redis.hget(keys.CONFIG, MARK.decode())
        async with self._moved:
            self._confirmed_ms = monotonic_ms()
            self._moved.notify_all()
        return mark is None or Mark.read(mark) == self._mark

    async def _apply_change(self, entry: Mapping[bytes, bytes]) -> bool:
        if entry[b"from"].decode() != str(self._mark):
            return False
        names = json.decode(entry[b"fields"], type=list[str])
        values = await self._redis.hmget(keys.CONFIG, names) if names else []
        self._apply({name.encode(): value for name, value in zip(names, values, strict=True)})
        await self._move_to(Mark.read(entry[b"to"]))
        return True

    async def _move_to(self, mark: Mark) -> None:
        async with self._moved:
            self._mark = mark
            self._confirmed_ms = monotonic_ms()
            self._moved.notify_all()

    def _keep_only(self, stored: Mapping[bytes, bytes]) -> None:
        self.changes += 1
        self._bots = {bot: config for bot, config in self._bots.items() if b"bot:" + bot.encode() in stored}
        self._contexts = {bot: context for bot, context in self._contexts.items() if bot in self._bots}
        self._keys = {digest: key for digest, key in self._keys.items() if b"key:" + digest.hex().encode() in stored}
        self._unreadable = {name: value for name, value in self._unreadable.items() if name in stored}

    def _apply(self, fields: Mapping[bytes, bytes | None]) -> None:
        """A record that cannot be read, since a newer version wrote it, stays as it was in this replica."""
        self.changes += 1
        for name, value in fields.items():
            try:
                self._apply_one(name, value)
            except ValueError as error:
                if self._unreadable.get(name) != value:
                    _log.error("configuration record unreadable", record=name.decode(errors="replace"), error=str(error))
                self._unreadable[name] = value or b""
            else:
                self._unreadable.pop(name, None)

    def _apply_one(self, name: bytes, value: bytes | None) -> None:
        kind, _, of = name.partition(b":")
        if kind == b"bot" and value is not None:
            bot = _bot_config(value, self._defaults)
            self._bots[bot.id] = bot
            self._contexts[bot.id] = BotContext(bot.rules, bot.sandbox, OPTIONAL_EVENTS - bot.subscribed)
        elif kind == b"key" and value is not None:
            self._keys[bytes.fromhex(of.decode())] = json.decode(value, type=KeyConfig)
        elif kind == b"key":
            self._keys.pop(bytes.fromhex(of.decode()), None)


def _end_if_cancelled() -> None:
    """Python 3.11's `wait_for`, by which redis-py sends, swallows a cancellation that arrives as the sending ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _bot_config(value: bytes, defaults: BotLimits) -> BotConfig:
    record = json.decode(value, type=BotRecord)
    limits = defaults.with_overrides(record.limits)
    version = PolicyVersion(record.policy_version, record.effective_at_ms, _policy(record))
    return BotConfig(
        id=record.id,
        name=record.name,
        sandbox=record.sandbox,
        clock_mode=record.clock_mode,
        deleted=record.deleted,
        rules=BotRules(record.id, version, limits.session_quota),
        endpoints=record.endpoints,
        subscribed=frozenset(event for endpoint in record.endpoints for event in endpoint.events),
        limits=limits,
    )


def _policy(record: BotRecord) -> Policy:
    """A policy that an older version accepted and this one refuses becomes the default: a bot without rules would be worse."""
    try:
        return policy_from(record.policy)
    except (InvalidPolicy, DecodeError) as error:
        _log.error("policy refused, the default applies", bot=record.id, version=record.policy_version, error=str(error))
        return Policy()
