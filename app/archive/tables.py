"""Every table of Postgres, as SQLAlchemy Core; the schema itself is made by the migrations alone, and a test holds the two equal.

Instants are `timestamptz`. `sessions` and `messages` are range-partitioned by month of the session's `opened_at`, which a
session's id carries, so a look-up by id goes to one partition (`app.archive.partitions` makes them). Rows that the archive
writes in bulk carry no foreign keys: a session must never be refused because its bot went away.

`revision` is stamped by a trigger on every change of `bots`, `policies`, `endpoints` and `api_keys`, whoever makes it, and its
order is the order of commits: `app.config.follower` copies what is newer than what Redis holds.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

Instant = TIMESTAMP(timezone=True)
Id = Uuid(as_uuid=False)
NOW = text("now()")
TRUE = text("true")
FALSE = text("false")
ZERO = text("0")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A day within the calendar of Python: asyncpg takes its very ends for infinity.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def instant(at_ms: int) -> datetime:
    """A `timestamptz` from ms since the epoch, exact to the ms; beyond the calendar it is the calendar's end.

    `app.domain.instants.ms_of` is the way back.
    """
    try:
        return _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return _LATEST if at_ms > 0 else _EARLIEST


def instant_or_none(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else instant(at_ms)


def _revision() -> Column[int]:
    return Column("revision", BigInteger, nullable=False, server_default=ZERO, index=True)


instance = Table(
    "instance",
    metadata,
    # Which database this is: Redis says of whose rows it holds a copy.
    Column("id", Id, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("created_at", Instant, nullable=False, server_default=NOW),
)

bots = Table(
    "bots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sandbox", Boolean, nullable=False, server_default=FALSE),
    # How a sandbox bot's clock moves: by the API call, or also by its entries' `sent_at`. Null for other bots.
    Column("clock_mode", Text),
    Column("created_at", Instant, nullable=False, server_default=NOW),
    Column("updated_at", Instant, nullable=False, server_default=NOW),
    Column("deleted_at", Instant),
    _revision(),
    CheckConstraint("(clock_mode IS NOT NULL) = sandbox AND clock_mode IN ('manual', 'sent_at')", name="clock_mode"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    # SHA-256 of a 256-bit random key: nothing to guess, so no salt and no slow hash. The key itself is kept nowhere.
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    # Null: all bots.
    Column("bots", ARRAY(Text)),
    Column("created_at", Instant, nullable=False, server_default=NOW),
    Column("created_by", Id),
    Column("revoked_at", Instant),
    _revision(),
)

policies = Table(
    "policies",
    metadata,
    Column("bot_id", Text, ForeignKey("bots.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    # As the admin saved it: a preset's name and overrides, not what they come to.
    Column("policy", JSONB, nullable=False),
    # In the bot's own time.
    Column("effective_at", Instant, nullable=False),
    Column("changed_at", Instant, nullable=False, server_default=NOW),
    Column("changed_by", Id),
    _revision(),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", Id, primary_key=True),
    Column("bot_id", Text, ForeignKey("bots.id"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    # Whether whoever named the address may name private ones: it may be a name, which is looked up again each time.
    Column("private_allowed", Boolean, nullable=False, server_default=TRUE),
    Column("events", ARRAY(Text), nullable=False),
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_secret_expires_at", Instant),
    Column("enabled", Boolean, nullable=False, server_default=TRUE),
    Column("disabled_reason", Text),
    Column("created_at", Instant, nullable=False, server_default=NOW),
    Column("updated_at", Instant, nullable=False, server_default=NOW),
    Column("deleted_at", Instant),
    _revision(),
)

sessions = Table(
    "sessions",
    metadata,
    # `opened_at` first: the id carries it, so the key serves look-ups and the order of lists alike.
    Column("opened_at", Instant, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("bot_id", Text, nullable=False),
    Column("conversation_id", Text, nullable=False),
    Column("thread", Text, nullable=False, server_default=text("''")),
    Column("user_id", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("closed_at", Instant, nullable=False),
    Column("reason", Text, nullable=False),
    Column("opening_rule", Text, nullable=False),
    Column("closing_rule", Text, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("interactive", Boolean, nullable=False),
    Column("developer", Boolean, nullable=False),
    # False where the policy keeps but does not count it (`requires_bot`).
    Column("counted", Boolean, nullable=False),
    Column("contained", Boolean),
    Column("outcome", Text),
    Column("trade", Text, nullable=False),
    Column("language", Text),
    Column("intent", Text),
    Column("tags", ARRAY(Text), nullable=False),
    Column("entries", Integer, nullable=False),
    Column("user_entries", Integer, nullable=False),
    Column("bot_entries", Integer, nullable=False),
    Column("agent_entries", Integer, nullable=False),
    Column("system_entries", Integer, nullable=False),
    Column("interactions", Integer, nullable=False),
    Column("billing_sessions", Integer, nullable=False),
    Column("first_response_ms", BigInteger),
    Column("continuation_of", Id),
    # The whole record as the domain wrote it (by position, `app.domain.records.Session`): what no column holds is read from here.
    Column("detail", JSONB, nullable=False),
    Column("archived_at", Instant, nullable=False, server_default=NOW),
    postgresql_partition_by="RANGE (opened_at)",
)
Index("ix_sessions_bot", sessions.c.bot_id, sessions.c.opened_at.desc(), sessions.c.id.desc())
Index(
    "ix_sessions_conversation",
    sessions.c.conversation_id,
    sessions.c.bot_id,
    sessions.c.opened_at.desc(),
    sessions.c.id.desc(),
)
Index("ix_sessions_user", sessions.c.user_id, sessions.c.bot_id, sessions.c.opened_at.desc(), sessions.c.id.desc())

messages = Table(
    "messages",
    metadata,
    Column("session_id", Id, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    # The session's, so that a session and its messages fall into partitions of one month.
    Column("opened_at", Instant, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("text", Text),
    Column("intent", Text),
    Column("language", Text),
    Column("tags", ARRAY(Text), nullable=False),
    Column("sent_at", Instant),
    Column("rest", JSONB),
    postgresql_partition_by="RANGE (opened_at)",
)

deliveries = Table(
    "deliveries",
    metadata,
    # uuid5(session, endpoint, event): the same event archived twice is one delivery.
    Column("id", Id, primary_key=True),
    Column("endpoint_id", Id, nullable=False),
    Column("bot_id", Text, nullable=False),
    # Null for a test of an endpoint.
    Column("session_id", Id),
    Column("event", Text, nullable=False),
    # The exact bytes to send: a signature must not depend on how JSON is written today.
    Column("body", Text, nullable=False),
    Column("created_at", Instant, nullable=False, server_default=NOW),
    # When what it tells of happened, in the bot's own time.
    Column("event_at", Instant, nullable=False, server_default=NOW),
    # When it was enqueued, or replayed last.
    Column("queued_at", Instant, nullable=False, server_default=NOW),
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    Column("attempt", Integer, nullable=False, server_default=ZERO),
    # Attempts that the retry schedule does not count: those before the last replay, and those that a stop cut short.
    Column("uncounted", Integer, nullable=False, server_default=ZERO),
    Column("next_attempt_at", Instant, nullable=False, server_default=NOW),
    # The delivery that must be settled before this one is tried.
    Column("after_id", Id),
    Column("leased_until", Instant),
    Column("delivered_at", Instant),
    Column("failed_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    CheckConstraint("status IN ('pending', 'delivered', 'failed', 'cancelled')", name="status"),
)
PENDING = text("status = 'pending'")
Index("ix_deliveries_due_endpoint", deliveries.c.endpoint_id, deliveries.c.next_attempt_at, postgresql_where=PENDING)
Index("ix_deliveries_leased", deliveries.c.endpoint_id, postgresql_where=text("status = 'pending' AND leased_until IS NOT NULL"))
Index("ix_deliveries_after", deliveries.c.after_id, postgresql_where=text("status = 'pending' AND after_id IS NOT NULL"))
Index("ix_deliveries_created", deliveries.c.created_at.desc(), deliveries.c.id.desc())
Index("ix_deliveries_bot", deliveries.c.bot_id, deliveries.c.created_at.desc(), deliveries.c.id.desc())
Index("ix_deliveries_failed", deliveries.c.failed_at, postgresql_where=text("status = 'failed'"))
Index("ix_deliveries_session", deliveries.c.session_id)

attempts = Table(
    "attempts",
    metadata,
    Column("delivery_id", Id, ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("started_at", Instant, nullable=False),
    Column("duration_ms", Integer),
    Column("status", SmallInteger),
    Column("error", Text),
    # The first kilobyte of what came back.
    Column("reply", Text),
)

endpoint_health = Table(
    "endpoint_health",
    metadata,
    # Only endpoints whose last attempt failed have a row: delivering to healthy ones writes nothing here.
    Column("endpoint_id", Id, primary_key=True),
    Column("failures", Integer, nullable=False),
    # The breaker: when it opened last, and when one delivery may try again. Null while it is closed.
    Column("opened_at", Instant),
    Column("resume_at", Instant),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", Instant, nullable=False, server_default=NOW),
    # Null: not by API (the command line, or Adjourn itself); `actor` says who.
    Column("key_id", Id),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("bot_id", Text),
    Column("target", Text, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
)
Index("ix_audit_log_bot", audit_log.c.bot_id, audit_log.c.id.desc())

session_stats = Table(
    "session_stats",
    metadata,
    Column("hour", Instant, primary_key=True),
    Column("bot_id", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("developer", Boolean, primary_key=True),
    Column("sessions", BigInteger, nullable=False, server_default=ZERO),
    Column("counted", BigInteger, nullable=False, server_default=ZERO),
    Column("interactive", BigInteger, nullable=False, server_default=ZERO),
    Column("contained", BigInteger, nullable=False, server_default=ZERO),
    Column("billing_sessions", BigInteger, nullable=False, server_default=ZERO),
    Column("interactions", BigInteger, nullable=False, server_default=ZERO),
    Column("entries", BigInteger, nullable=False, server_default=ZERO),
    Column("by_reason", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("by_outcome", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("duration_ms", BigInteger, nullable=False, server_default=ZERO),
    Column("duration_buckets", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
    Column("first_response_buckets", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
)
Index("ix_session_stats_bot", session_stats.c.bot_id, session_stats.c.hour)

rejects = Table(
    "rejects",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", Instant, nullable=False, server_default=NOW),
    Column("bot_id", Text),
    Column("session_id", Id),
    Column("error", Text, nullable=False),
    # Bytes, since a text that Postgres refused once would be refused here too.
    Column("payload", LargeBinary, nullable=False),
)
