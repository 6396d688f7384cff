"""The names of all keys in Redis; no other module spells one. Each says its type, writer, life and growth.

All keys of a conversation share the hash tag `{n}` of its shard, so a script call touches one slot. A key without `{n}` is
reached by single-key commands alone. The writers are the tasks of docs/architecture.md.
"""

import re

from app.domain.strand import Strand, conversation_hash, conversation_hash_of

SEPARATOR = "\x1f"  # refused in ids, so a member splits into the parts it was made of

# Fields of a session's message hash that hold no message; ids hold no control characters.
STRAND_FIELD = "\x1fstrand"
CLOSED_FIELD = "\x1fclosed"

SHARDS = "adj:shards"
"""The number of shards, which is part of every sharded key.

Type: string. Writer: the first process that starts. Life: for ever. Growth: none.
"""

CONFIG = "adj:{config}"
"""The copy of the configuration: `mark`, `bot:<id>` and `key:<digest>` to JSON.

Type: hash. Writer: publish. Life: for ever; written again from Postgres where it is lost. Growth: a field a bot and valid key.
"""

CONFIG_CHANGES = "adj:{config}:changes"
"""Which fields of the copy changed, from mark to mark.

Type: stream. Writer: publish. Life: for ever. Growth: about the latest 1,000 changes.
"""

HEARTBEATS = "adj:heartbeats"
"""Worker to the instant of its last heartbeat.

Type: hash. Writer: heartbeat of each worker. Life: a field is deleted at a worker's stop, or an hour after its last heartbeat.
Growth: one field a worker.
"""

POLICIES_APPLIED = "adj:policies:applied"
"""Bot to the policy version by which the deadlines of its open sessions were computed.

Type: hash. Writer: change policies. Life: for ever. Growth: one field a bot.
"""

CONSOLE_SECRET = "adj:console:secret"  # noqa: S105 - the name of a key
"""The secret that signs the cookies of the console: 256 random bits as hex.

Type: string. Writer: the console, at the first sign-in. Life: for ever; without it everyone signs in again. Growth: none.
"""

KEYS_USED = "adj:keys:used"
"""Id of an API key to the instant of its last use, in ms.

Type: hash. Writer: key usage of each API process. Life: for ever. Growth: one field a key.
"""

ARCHIVE_STOPPED = "adj:archive:stopped"
"""Why an archivist takes no new records.

Type: string. Writer: archivist. Life: 30 s after the last try; deleted when one succeeds. Growth: none.
"""


def rate(name: str) -> str:
    """The rest of a rate: `entries`, `bytes` or `requests`, of the key or bot that spends it.

    Type: hash. Writer: the API. Life: a TTL a second longer than it takes to fill. Growth: up to three a key and two a bot.
    """
    return f"adj:rate:{name}"


def state(shard: int, member: str) -> str:
    """A strand's version, a colon, and its state as msgpack.

    Type: string. Writer: commit. Life: no TTL while a session is open; then until `Decision.keep_until_ms`, at least 24 hours
    after the close. Growth: one a strand, of about 400 bytes; at most 64 KB of dialog and variables each.
    """
    return f"adj:{{{shard}}}:c:{member}"


def states_of_user(bot: str, user: str) -> str:
    """The pattern of the names of `state` of a user's conversations that the bot does not name."""
    escaped = re.sub(r"([*?\[\]\\^])", r"\\\1", f":{user}")
    return state(0, SEPARATOR.join((bot, f"*{escaped}", "*"))).replace("{0}", "{*}", 1)


def messages(shard: int, session: str) -> str:
    """Message id to message, of one session; `STRAND_FIELD` to its strand, and `CLOSED_FIELD` to the session once it is closed.

    A late entry writes it again where it has expired; such a remainder lacks `STRAND_FIELD` and is no transcript.

    Type: hash. Writer: commit. Life: no TTL until the session, and each of its updates, is archived; then 15 minutes, in which
    repeats are recognised. Growth: one field an entry.
    """
    return f"adj:{{{shard}}}:m:{session}"


def due(shard: int, bot: str | None = None) -> str:
    """Strand to the instant at which it is due. `bot`: a sandbox bot, whose deadlines are in its own time.

    Type: sorted set. Writer: commit; the sweep postpones. Life: a member is deleted when its session closes.
    Growth: one member an open session.
    """
    return f"adj:{{{shard}}}:due:{bot}" if bot else f"adj:{{{shard}}}:due"


def users(shard: int, bot: str) -> str:
    """`user_member` of each of a bot's open sessions, all with score 0: found by the user's id, which they begin with.

    Type: sorted set. Writer: commit; the consistency check adds missing members. Life: a member is deleted when its session
    closes. Growth: one member an open session.
    """
    return f"adj:{{{shard}}}:users:{bot}"


def user_variables(bot: str, user: str) -> str:
    """Name to expiry and value, of a user's variables.

    Type: hash. Writer: the API. Life: a TTL of 366 days, renewed by each write. Growth: at most 64 KB a user.
    """
    return f"adj:user:{SEPARATOR.join((bot, user))}"


def live(shard: int, bot: str) -> str:
    """Strand to `opened_at_ms`, of a bot's open sessions.

    Type: sorted set. Writer: commit. Life: a member is deleted when its session closes. Growth: one member an open session.
    """
    return f"adj:{{{shard}}}:open:{bot}"


def events(shard: int) -> str:
    """Event records that are not archived yet; consumer group `archive`.

    Type: stream. Writer: commit. Life: a record is deleted when it is released. Growth: the backlog; without bound while Postgres
    is down.
    """
    return f"adj:{{{shard}}}:events"


def feed(shard: int) -> str:
    """The latest events of sessions, for clients that follow them.

    Type: stream. Writer: commit. Life: a record is trimmed two minutes later, by a commit that writes another.
    Growth: the events of two minutes, about 150 bytes each.
    """
    return f"adj:{{{shard}}}:feed"


def channels(shard: int) -> str:
    """`channel_field` to how many sessions are open there.

    Type: hash. Writer: commit; the consistency check counts anew where the sum is wrong. Life: a field is deleted at 0.
    Growth: one field a bot and channel.
    """
    return f"adj:{{{shard}}}:channels"


def counts(shard: int) -> str:
    """Sessions opened and closed, event records emitted and released, since the shard began.

    Type: hash. Writer: commit, release, replay of rejects. Life: for ever. Growth: none.
    """
    return f"adj:{{{shard}}}:counts"


def policy_lease(bot: str) -> str:
    """The worker that moves the deadlines of a bot's open sessions.

    Type: string. Writer: change policies. Life: a TTL of seconds. Growth: one a bot whose policy changes.
    """
    return f"adj:policies:lease:{bot}"


def sandbox_clock(bot: str) -> str:
    """The instant of a sandbox bot's clock, in ms.

    Type: string. Writer: ingest and the API. Life: for ever. Growth: one a sandbox bot.
    """
    return f"adj:clock:{bot}"


def shard_of(strand: Strand, shards: int) -> int:
    return conversation_hash(strand.bot, strand.conversation) % shards


def shard_of_session(session: str, shards: int) -> int:
    return conversation_hash_of(session) % shards


def strand_of_state(name: str) -> Strand:
    """The strand that the name of a `state` ends in. Raises `ValueError` for another name."""
    return strand_from(name.split(":c:", 1)[1])


def member(strand: Strand) -> str:
    """A strand as a member of sorted sets and as the last part of its state's key."""
    return SEPARATOR.join((strand.bot, strand.conversation, strand.thread))


def user_member(user: str, strand: Strand) -> str:
    """A user's session as a member of `users`."""
    return SEPARATOR.join((user, strand.conversation, strand.thread))


def channel_field(bot: str, channel: str) -> str:
    """A bot's channel as a field of `channels`."""
    return SEPARATOR.join((bot, channel))


def channel_from(field: bytes) -> tuple[str, str]:
    """The bot and the channel that a field of `channels` names."""
    bot, _, channel = field.decode().partition(SEPARATOR)
    return bot, channel


def bot_of_member(member: bytes) -> str:
    """The bot of a strand as a member; some text that is no bot's id for a member that this product did not write."""
    return member.split(SEPARATOR.encode(), 1)[0].decode(errors="replace")


def live_member(bot: str, user_member: bytes) -> bytes:
    """The member of `live` that belongs to a member of `users`: the bot instead of the user."""
    return bot.encode() + user_member[user_member.find(SEPARATOR.encode()) :]


def user_range(user: str) -> tuple[bytes, bytes]:
    """The limits of `ZRANGEBYLEX` between which the members of one user lie."""
    start = b"[" + user.encode()
    return start + b"\x1f", start.replace(b"[", b"(", 1) + b"\x20"


def strand_from(member: str) -> Strand:
    """The strand that a member names. Raises `ValueError` for text that `member` did not make."""
    bot, conversation, thread = member.split(SEPARATOR)
    return Strand(bot, conversation, thread)


def strand_or_none(member: bytes) -> Strand | None:
    """The strand that a member names; None for a member that this product did not write."""
    try:
        return strand_from(member.decode())
    except ValueError:
        return None
