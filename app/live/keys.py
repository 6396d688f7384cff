"""The names of everything in Redis; no other module spells one.

All that belongs to a conversation shares its shard's hash tag `{n}`, so one script call touches one slot.
"""

from app.domain.strand import Strand, conversation_hash, conversation_hash_of

SEPARATOR = "\x1f"  # refused in ids, so a member splits back without doubt

# Fields of a session's message hash that are no message; ids hold no control characters.
STRAND_FIELD = "\x1fstrand"
CLOSED_FIELD = "\x1fclosed"

SHARDS = "adj:shards"
CONFIG = "adj:{config}"
CONFIG_CHANGES = "adj:{config}:changes"
HEARTBEATS = "adj:heartbeats"
# Bot to the policy version that its open sessions' deadlines stand by.
POLICIES_APPLIED = "adj:policies:applied"


def shard_of(strand: Strand, shards: int) -> int:
    return conversation_hash(strand.bot, strand.conversation) % shards


def shard_of_session(session: str, shards: int) -> int:
    return conversation_hash_of(session) % shards


def member(strand: Strand) -> str:
    """A strand as a member of `due` and the last part of its key."""
    return SEPARATOR.join((strand.bot, strand.conversation, strand.thread))


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


def state(shard: int, member: str) -> str:
    return f"adj:{{{shard}}}:c:{member}"


def messages(shard: int, session: str) -> str:
    return f"adj:{{{shard}}}:m:{session}"


def due(shard: int, bot: str | None = None) -> str:
    """`bot` for a sandbox bot: its deadlines stand in its own time, in a set of its own."""
    return f"adj:{{{shard}}}:due:{bot}" if bot else f"adj:{{{shard}}}:due"


def live(shard: int, bot: str) -> str:
    """A bot's open sessions: member to `opened_at_ms`."""
    return f"adj:{{{shard}}}:open:{bot}"


def events(shard: int) -> str:
    return f"adj:{{{shard}}}:events"


def counts(shard: int) -> str:
    """How many sessions were opened and closed, how many event records were written and released, since the shard began."""
    return f"adj:{{{shard}}}:counts"


def policy_lease(bot: str) -> str:
    """Held by the worker that moves the deadlines of a bot's open sessions."""
    return f"adj:policies:lease:{bot}"


def sandbox_clock(bot: str) -> str:
    return f"adj:clock:{bot}"
