"""The call of `commit.lua`: packs decided folds into its arguments and reads its reply. It decides and retries nothing."""

from collections.abc import Sequence
from secrets import token_hex
from struct import Struct as Layout

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

# The head of a commit, and its codes, as `commit.lua` reads them.
_pack = Layout(">16H3q").pack
_NONE, _ENDED = -1, -2
_IN_LISTS, _ID_CHECKED, _ID_UNCHECKED = 0, 1, 2


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


class Commit(Struct, frozen=True, gc=False):
    """One fold of a call. `version` is stored if it succeeds: where Redis holds that version, this commit was made.

    `state` is the encoded state that it writes, empty if it writes none.
    """

    version: str
    state: bytes


class CommitCall(Struct, frozen=True):
    """One call of the script: its KEYS, and the arguments of its commits one after the other. Sent twice it commits once."""

    names: list[str]
    args: list[Argument]
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

    def prepare(self, folds: Sequence[Fold], *, now_ms: int, closing: bool) -> CommitCall:
        """The call that commits decided folds."""
        names = _Names()
        args: list[Argument] = []
        commits = [_add_commit(args, fold, names, version=self._new_version(), now_ms=now_ms) for fold in folds]
        return CommitCall(list(names), args, now_ms, closing, commits)

    async def send(self, call: CommitCall) -> dict[int, CommitRefusal] | None:
        """By index, the commits that wrote nothing; None if `now_ms` was too far off and none did.

        Raises `Unavailable`.
        """
        sent_ms = monotonic_ms()
        reply = await self._evaluate(call)
        self._clock.observe(int(reply[0]), sent_ms=sent_ms, received_ms=monotonic_ms())
        return None if reply[1] == 0 else dict(_refusal(item) for item in reply[2:])

    def _new_version(self) -> str:
        """Unique over all processes: where it is stored, exactly this commit was made."""
        self._versions += 1
        return f"{self._prefix}{self._versions:x}"

    async def _evaluate(self, call: CommitCall) -> RedisReply:
        lua = self._closing if call.closing else self._taking
        try:
            return await lua.call(
                self._pipe, call.names, call.now_ms, self._max_skew_ms, int(call.closing), FEED_KEPT_MS, *call.args
            )
        except ResponseError as error:
            raise Unavailable(f"Redis refused a commit: {error}", retry_after_s=1) from error


class _Names(dict[str, int]):
    """The script's KEYS: each name once, with the index by which commits refer to it. Naming it adds it."""

    def __missing__(self, name: str) -> int:
        index = self[name] = len(self) + 1
        return index


def _add_commit(args: list[Argument], fold: Fold, names: _Names, *, version: str, now_ms: int) -> Commit:
    """Add the arguments of a fold, as `commit.lua` names them."""
    session = fold.only_message_of()
    if session is None:
        return _add_any(args, fold, names, version=version, now_ms=now_ms)
    # Nearly always: one entry that an open session goes on with.
    shard, last = fold.at.shard, fold.decided[0][1]
    message, stored = last.messages[0][1], encode(last.state)
    checked = bool(fold.message_ids())
    others = [earlier for earlier in fold.earlier_sessions() if earlier != session] if checked else []
    head = _pack(
        names[fold.at.key], names[fold.at.messages(session)], names[keys.due(shard, fold.strand.bot if fold.sandbox else None)],
        0, 0, 0, 0, 0, 0, fold.at.member_at, _ID_CHECKED if checked else _ID_UNCHECKED, 0, 0, len(others), 0, 0,
        _NONE if last.wake_at_ms is None else last.wake_at_ms, _NONE, _NONE,
    )  # fmt: skip
    args += head + fold.expected, b"%b:%b" % (version.encode(), stored), message.message_id, encode(message)
    for earlier in others:
        args += names[keys.messages(shard, earlier)], 1, message.message_id
    return Commit(version, stored)


def _add_any(args: list[Argument], fold: Fold, names: _Names, *, version: str, now_ms: int) -> Commit:
    shard, bot, last, events = fold.at.shard, fold.strand.bot, fold.decided[-1][1], fold.events()
    types = [event.type for event in events]
    opened_at, members = _opened(fold, last)
    written = _is_written(fold, last)
    stored = encode(last.state) if written else b""
    checks, lists = _checks(fold, names), _lists(fold, names)
    records = _records(fold, [event for event in events if event.type not in fold.silent])
    head = _pack(
        names[fold.at.key], 0, names[keys.due(shard, bot if fold.sandbox else None)], names[keys.live(shard, bot)],
        names[keys.users(shard, bot)] if members else 0, names[keys.channels(shard)] if members else 0,
        names[keys.events(shard)] if records else 0, names[keys.feed(shard)] if events else 0, names[keys.counts(shard)],
        fold.at.member_at, _IN_LISTS, types.count("session.opened"), types.count("session.closed"),
        len(checks), len(lists), len(records),
        _NONE if last.wake_at_ms is None else last.wake_at_ms, opened_at, _keep_ms(fold, last, now_ms=now_ms),
    )  # fmt: skip
    args += head + fold.expected, b"%b:%b" % (version.encode(), stored) if written else b"", *members
    for each in (*checks, *lists):
        args += each
    args += records
    if events:
        args.append(feed_record(fold.strand, events))
    return Commit(version if written else fold.version, stored)


def _is_written(fold: Fold, last: Decision) -> bool:
    """Whether anything changed. A wake is written in any case: it corrects `due`, in case a wrong deadline there caused it."""
    for pending, decision in fold.decided:
        if decision.messages or decision.events or decision.unassigned or isinstance(pending.command, Wake):
            return True
    return last.state != fold.state


def _opened(fold: Fold, last: Decision) -> tuple[int, tuple[Argument, ...]]:
    """`opened_at`; the members to delete from and to add to the sessions by user, and the same of those by channel."""
    before, after = fold.state.session, last.state.session
    if before is after or (before is not None and after is not None and before.id == after.id):
        return _NONE, ()
    leave = keys.user_member(before.user_id, fold.strand) if before else ""
    left = keys.channel_field(fold.strand.bot, before.channel) if before else ""
    if after is None:
        return _ENDED, (leave, "", left, "")
    joined = keys.channel_field(fold.strand.bot, after.channel)
    return after.opened_at_ms, (leave, keys.user_member(after.user_id, fold.strand), left, joined)


def _keep_ms(fold: Fold, last: Decision, *, now_ms: int) -> int:
    if last.state.session is not None:
        return _NONE
    # A sandbox bot's clock may not move for longer than that.
    spare_ms = 7 * 86_400_000 if fold.sandbox else 1_000
    at_ms = last.state.touched_at_ms if fold.sandbox else now_ms
    return max(last.keep_until_ms - at_ms, 0) + spare_ms


def _checks(fold: Fold, names: _Names) -> list[list[Argument]]:
    ids = fold.message_ids()
    if not ids:
        return []
    chunks = [ids[at : at + _A_COMMAND] for at in range(0, len(ids), _A_COMMAND)]
    return [
        [names[keys.messages(fold.at.shard, session)], len(chunk), *chunk]
        for session in fold.earlier_sessions()
        for chunk in chunks
    ]


def _lists(fold: Fold, names: _Names) -> list[list[Argument]]:
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
    return [[names[keys.messages(fold.at.shard, session)], len(chunk), *chunk] for session, chunk in chunks]


def _records(fold: Fold, events: Sequence[Event]) -> list[Argument]:
    strand, unassigned = fold.strand, fold.unassigned()
    if not events and not unassigned:
        return []
    return [encode(EventRecord(strand.bot, strand.conversation, strand.thread, tuple(events), tuple(unassigned)))]


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
