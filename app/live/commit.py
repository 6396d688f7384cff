"""The call of `commit.lua`: packs decided folds into its arguments and reads its reply. It decides and retries nothing."""

from collections.abc import Sequence
from secrets import token_hex

from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import Clock, monotonic_ms
from app.domain.records import Decision, Event, Wake
from app.errors import Unavailable
from app.live import keys
from app.live.codec import EventRecord, encode
from app.live.feed import FEED_KEPT_MS, feed_record
from app.live.fold import Fold
from app.live.lua import LuaScript, read_source
from app.live.pipe import Argument, Pipe, RedisReply

_SOURCE = read_source("app.live", "commit.lua")

# How many arguments Lua may unpack at once is limited (8,000); even, since fields and values go in pairs.
_A_COMMAND = 2_000


class VersionConflict(Struct, frozen=True):
    """Another process committed first: the version and the state that Redis holds now."""

    version: str
    state: bytes


class Repeats(Struct, frozen=True):
    """Entries that are stored already: message id to message."""

    stored: dict[str, bytes]


class UnreadableState(Struct, frozen=True):
    """Redis holds a value for this conversation that no commit wrote."""


CommitRefusal = VersionConflict | Repeats | UnreadableState


class Commit(Struct, frozen=True):
    """The arguments of one fold. `version` is stored if it succeeds: where Redis holds that version, this commit was made.

    `state` is the encoded state that it writes, empty if it writes none.
    """

    args: list[Argument]
    version: str
    state: bytes


class CommitCall(Struct, frozen=True):
    """One call of the script. Sent twice it commits once."""

    names: list[str]
    now_ms: int
    closing: bool
    commits: list[Commit]


class CommitScript:
    """`commit.lua` on one connection, for all shards."""

    def __init__(self, pipe: Pipe, clock: Clock, *, max_skew_ms: int) -> None:
        self._pipe = pipe
        self._taking, self._closing = LuaScript(_SOURCE), LuaScript(_SOURCE, when_full=True)
        self._clock = clock
        self._max_skew_ms = max_skew_ms
        self._prefix = f"{token_hex(5)}."
        self._versions = 0

    def prepare(
        self, shard: int, folds: Sequence[Fold], *, now_ms: int, closing: bool, silent: Sequence[frozenset[str]]
    ) -> CommitCall:
        """The call that commits decided folds of one shard; `silent[i]`: event types not to emit for fold i."""
        names = _Names(shard)
        commits = [
            _commit(fold, names, version=self._new_version(), now_ms=now_ms, silent=types)
            for fold, types in zip(folds, silent, strict=True)
        ]
        return CommitCall(list(names), now_ms, closing, commits)

    async def send(self, call: CommitCall) -> dict[int, CommitRefusal] | None:
        """By index, the commits that wrote nothing; None if `now_ms` was too far off and none did.

        Raises `Unavailable`.
        """
        args = (arg for commit in call.commits for arg in commit.args)
        sent_ms = monotonic_ms()
        reply = await self._evaluate(call, *args)
        self._clock.observe(int(reply[0]), sent_ms=sent_ms, received_ms=monotonic_ms())
        return None if reply[1] == 0 else dict(_refusal(item) for item in reply[2:])

    def _new_version(self) -> str:
        """Unique over all processes: where it is stored, exactly this commit was made."""
        self._versions += 1
        return f"{self._prefix}{self._versions:x}"

    async def _evaluate(self, call: CommitCall, *args: Argument) -> RedisReply:
        lua = self._closing if call.closing else self._taking
        try:
            return await lua.call(self._pipe, call.names, call.now_ms, self._max_skew_ms, int(call.closing), FEED_KEPT_MS, *args)
        except ResponseError as error:
            raise Unavailable(f"Redis refused a commit: {error}", retry_after_s=1) from error


class _Names(dict[str, int]):
    """The script's KEYS: each name once, with the index by which commits refer to it. Naming it adds it."""

    __slots__ = ("shard",)

    def __init__(self, shard: int) -> None:
        for name in (keys.events(shard), keys.counts(shard), keys.feed(shard), keys.channels(shard)):
            self[name]  # each takes the next index: the script knows them by it
        self.shard = shard

    def __missing__(self, name: str) -> int:
        index = self[name] = len(self) + 1
        return index


def _commit(fold: Fold, names: _Names, *, version: str, now_ms: int, silent: frozenset[str]) -> Commit:
    shard, strand = names.shard, fold.strand
    member = keys.member(strand)
    last = fold.decided[-1][1]
    events = fold.events()
    types = [event.type for event in events]
    opened, leave, join, left, joined = _opened(fold, last)
    written = _is_written(fold, last)
    stored = encode(last.state) if written else b""
    args: list[Argument] = [
        names[keys.state(shard, member)],
        fold.version,
        version if written else fold.version,
        stored,
        names[keys.due(shard, strand.bot if fold.sandbox else None)],
        names[keys.live(shard, strand.bot)],
        names[keys.users(shard, strand.bot)] if leave or join else "",
        member,
        leave,
        join,
        left,
        joined,
        last.wake_at_ms if last.wake_at_ms is not None else "",
        opened,
        _keep_ms(fold, last, now_ms=now_ms),
        types.count("session.opened"),
        types.count("session.closed"),
    ]
    _add_checks(args, fold, names)
    _add_messages(args, fold, names)
    _add_records(args, fold, [event for event in events if event.type not in silent])
    args.append(feed_record(fold.strand, events) if events else b"")
    return Commit(args, version if written else fold.version, stored)


def _is_written(fold: Fold, last: Decision) -> bool:
    """Whether anything changed. A wake is written in any case: it corrects `due`, in case a wrong deadline there caused it."""
    for pending, decision in fold.decided:
        if decision.messages or decision.events or decision.unassigned or isinstance(pending.command, Wake):
            return True
    return last.state != fold.state


def _opened(fold: Fold, last: Decision) -> tuple[Argument, ...]:
    """`opened_at`; the members to delete from and to add to the sessions by user; the same of the counts by channel."""
    before, after = fold.state.session, last.state.session
    if before is after or (before is not None and after is not None and before.id == after.id):
        return "", "", "", "", ""  # nearly always
    leave = keys.user_member(before.user_id, fold.strand) if before else ""
    left = keys.channel_field(fold.strand.bot, before.channel) if before else ""
    if after is None:
        return "-", leave, "", left, ""
    joined = keys.channel_field(fold.strand.bot, after.channel)
    return after.opened_at_ms, leave, keys.user_member(after.user_id, fold.strand), left, joined


def _keep_ms(fold: Fold, last: Decision, *, now_ms: int) -> Argument:
    if last.state.session is not None:
        return ""
    # A sandbox bot's clock may not move for longer than that.
    spare_ms = 7 * 86_400_000 if fold.sandbox else 1_000
    at_ms = last.state.touched_at_ms if fold.sandbox else now_ms
    return max(last.keep_until_ms - at_ms, 0) + spare_ms


def _add_checks(args: list[Argument], fold: Fold, names: _Names) -> None:
    ids = fold.message_ids()
    sessions = fold.earlier_sessions() if ids else []
    chunks = [ids[at : at + _A_COMMAND] for at in range(0, len(ids), _A_COMMAND)]
    args.append(len(sessions) * len(chunks))
    for session in sessions:
        for chunk in chunks:
            args += names[keys.messages(names.shard, session)], len(chunk), *chunk


def _add_messages(args: list[Argument], fold: Fold, names: _Names) -> None:
    fields: dict[str, list[Argument]] = {}
    for _, decision in fold.decided:
        for session, message in decision.messages:
            fields.setdefault(session, []).extend((message.message_id, encode(message)))
        for event in decision.events:
            if event.type == "session.opened":
                fields.setdefault(event.session.id, []).extend((keys.STRAND_FIELD, keys.member(fold.strand)))
            elif event.type in {"session.closed", "session.updated"}:
                fields.setdefault(event.session.id, []).extend((keys.CLOSED_FIELD, encode(event.session)))
    chunks = [
        (session, pairs[at : at + _A_COMMAND]) for session, pairs in fields.items() for at in range(0, len(pairs), _A_COMMAND)
    ]
    args.append(len(chunks))
    for session, chunk in chunks:
        args += names[keys.messages(names.shard, session)], len(chunk), *chunk


def _add_records(args: list[Argument], fold: Fold, events: Sequence[Event]) -> None:
    strand, unassigned = fold.strand, fold.unassigned()
    if not events and not unassigned:
        args.append(0)
        return
    record = EventRecord(strand.bot, strand.conversation, strand.thread, tuple(events), tuple(unassigned))
    args += 1, encode(record)


def _refusal(item: list[bytes | int]) -> tuple[int, CommitRefusal]:
    index, kind, *extra = item
    try:
        if kind == b"conflict":
            return int(index) - 1, VersionConflict(bytes(extra[0]).decode(), bytes(extra[1]))
        if kind == b"repeat":
            stored = {bytes(extra[i]).decode(): bytes(extra[i + 1]) for i in range(0, len(extra), 2)}
            return int(index) - 1, Repeats(stored)
    except UnicodeDecodeError:  # a version that no process made
        pass
    return int(index) - 1, UnreadableState()
