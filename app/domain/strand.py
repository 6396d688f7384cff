"""The strand, in which sessions follow one another, and the ids made from it.

A strand is a conversation or, where several sessions of it may be open side by side (method `client`, windows of the help
channel, several channels), one thread of it. Sessions of one strand never overlap; every decision is about one strand.
"""

from functools import lru_cache
from hashlib import blake2b
from uuid import UUID, uuid5

from msgspec import Struct

from app.domain.entry import LONGEST_SLUG, Entry
from app.domain.errors import InvalidEntry
from app.domain.policy.model import PolicyVersion
from app.domain.records import Event

HASH_BITS = 12
MAX_SHARDS = 1 << HASH_BITS
GENERATION_BITS = 12
HELP = "help"
DEFAULT_CHANNEL = "web"
LONGEST_THREAD = LONGEST_SLUG + 1 + 256
EVENT_NAMESPACE = UUID("0d9d5c1e-5a53-4c8f-9d0e-6e2f6a1f7c11")
LONGEST_CONVERSATION = len(HELP) + 1 + 3 * 256 + 1 + 256  # a default one, every character of its user written as `%3A`


class Strand(Struct, frozen=True, gc=False, order=True, cache_hash=True):
    """`thread` is empty, the client's session id (method `client`) or the window (channel `help`).

    In a conversation that the bot names, the channel comes before it, unless it is `web`: `sms`, `sms:<client's session>`.
    """

    bot: str
    conversation: str
    thread: str = ""


def strand_of(bot: str, entry: Entry, policy: PolicyVersion) -> Strand:
    """The strand that an entry belongs to: its conversation and, within it, channel and client's session or help window.

    A conversation over several channels has a session in each (ruling 12). The default conversation is one of its channel.
    Raises `InvalidEntry` under method `client` for an entry without `client_session_id` (B11).
    """
    default = default_conversation(entry)
    conversation = entry.conversation_id or default
    channel = "" if conversation == default or entry.channel == DEFAULT_CHANNEL else entry.channel
    thread = _thread(entry, policy)
    return Strand(bot, conversation, f"{channel}:{thread}" if channel and thread else channel or thread)


def _thread(entry: Entry, policy: PolicyVersion) -> str:
    """The client's session, where the method asks for it, or the help window."""
    if policy.terms(entry.channel).policy.method == "client":
        if entry.client_session_id is None:
            raise InvalidEntry(
                "client_session_id",
                "it is required: the policy's method is `client`, so every entry names its session",
                "send client_session_id, or choose the method `inactivity` or `platform`",
            )
        return entry.client_session_id
    return entry.window_id or "" if entry.channel == HELP else ""


def default_conversation(entry: Entry) -> str:
    """Channel and user; on channel `help` also the window. No channel's name holds a colon, so the first one ends it."""
    if entry.channel != HELP:
        return f"{entry.channel}:{entry.user_id}"
    # The user's own colons are written otherwise here, so that the second one is that before the window.
    user = entry.user_id.replace("%", "%25").replace(":", "%3A")
    return f"{HELP}:{user}" if entry.window_id is None else f"{HELP}:{user}:{entry.window_id}"


@lru_cache(maxsize=65_536)
def conversation_hash(bot: str, conversation: str) -> int:
    """12 bits that place a conversation: its shard is this number modulo the number of shards."""
    digest = blake2b(f"{bot}\x1f{conversation}".encode(), digest_size=2).digest()
    return int.from_bytes(digest) >> 4


def session_id(strand: Strand, *, generation: int, opened_at_ms: int) -> str:
    """UUIDv7 whose time is `opened_at_ms`; then come the conversation's hash, the generation, and a hash of all that.

    The same decision taken twice gives the same id, and shard and month follow from the id alone. The ids of one strand's
    sessions are in their order, also of those that open in the same millisecond.
    """
    place = conversation_hash(strand.bot, strand.conversation)
    seed = f"{strand.bot}\x1f{strand.conversation}\x1f{strand.thread}\x1f{generation}"
    order = generation & (1 << GENERATION_BITS) - 1
    rest = order << 62 - GENERATION_BITS | int.from_bytes(blake2b(seed.encode(), digest_size=8).digest()) >> 2 + GENERATION_BITS
    return str(UUID(int=opened_at_ms << 80 | 7 << 76 | place << 64 | 2 << 62 | rest))


def opened_at_ms_of(session: str) -> int:
    """The opening instant that a session's id carries, in ms."""
    return UUID(session).int >> 80


def conversation_hash_of(session: str) -> int:
    """The conversation's hash that a session's id carries."""
    return UUID(session).int >> 64 & (MAX_SHARDS - 1)


def event_name(event: Event) -> str:
    """An event among all events: a session has one of each type, but several reminders and updates."""
    once = f"{event.session.id}/{event.type}"
    if event.type == "session.reminder":
        return f"{once}/{event.at_ms}"
    return f"{once}/{event.session.late_entries}" if event.type == "session.updated" else once


def event_id(event: Event) -> str:
    """The id of an event, the same in every webhook about it: `in_reply_to` names it."""
    return str(uuid5(EVENT_NAMESPACE, event_name(event)))
