"""Every table of Postgres, as SQLAlchemy Core, with the meaning of each column (`doc`).

The migrations alone make the schema, and a test holds the two equal; another test holds that no column is without its meaning.

Instants are `timestamptz`. `sessions` and `messages` are range-partitioned by month of the session's `opened_at`, which a
session's id carries, so a look-up by id goes to one partition (`app.archive.partitions` makes them). Rows that the archivist
writes in bulk have no foreign keys: a session must never be refused because its bot was deleted.

A trigger stamps `revision` on every change of `bots`, `policies`, `endpoints` and `api_keys`, whatever makes it. Its order is the
order of commits: `app.config.follower` copies what is newer than the copy in Redis.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, get_args

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

from app.archive.analytics_metrics import ADDING_UP, COUNTS, OUTCOME_DIMENSIONS, OUTCOME_METRICS, SPREADS
from app.domain.records import last_reported

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

Timestamptz = TIMESTAMP(timezone=True)
UuidText = Uuid(as_uuid=False)
NOW = text("now()")
TRUE = text("true")
FALSE = text("false")
ZERO = text("0")
_TYPES = {str: Text, int: BigInteger, bool: Boolean}

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
    doc = "Number of the row's last change, in the order of commits; stamped by a trigger."
    return Column("revision", BigInteger, nullable=False, server_default=ZERO, index=True, doc=doc)


def _created_at() -> Column[datetime]:
    return Column("created_at", Timestamptz, nullable=False, server_default=NOW, doc="When the row was made.")


def _limits() -> Column[dict[str, int]]:
    doc = "Limits in place of those of the settings, by the setting's name in lower case."
    return Column("limits", JSONB, nullable=False, server_default=text("'{}'::jsonb"), doc=doc)


def _count(name: str, doc: str) -> Column[int]:
    return Column(name, Integer, nullable=False, doc=doc)


def _last_reported() -> Iterator[Column[Any]]:
    """The columns of the fields that a session takes from the entry that reported them last."""
    for name, hint in last_reported().items():
        kind, meta = get_args(hint)[:2]
        (plain,) = set(get_args(kind)) - {NoneType}
        yield Column(name, _TYPES[plain], doc=meta.description)


instance = Table(
    "instance",
    metadata,
    Column(
        "id",
        UuidText,
        primary_key=True,
        server_default=text("gen_random_uuid()"),
        doc="Which database this is: the copy of the configuration in Redis names the one that it was made of.",
    ),
    _created_at(),
)

bots = Table(
    "bots",
    metadata,
    Column("id", Text, primary_key=True, doc="Slug, chosen by the admin."),
    Column("name", Text, nullable=False, doc="Name for people."),
    Column("sandbox", Boolean, nullable=False, server_default=FALSE, doc="Whether it has a clock of its own."),
    Column("clock_mode", Text, doc="How a sandbox bot's clock moves: `manual`, or also by `sent_at`. Null for other bots."),
    _created_at(),
    Column("updated_at", Timestamptz, nullable=False, server_default=NOW, doc="The last change by an admin."),
    Column("deleted_at", Timestamptz, doc="Null: it is not deleted. The row stays, so that its sessions keep its name."),
    _revision(),
    Column(
        "retention_days",
        JSONB,
        nullable=False,
        server_default=text("'{}'::jsonb"),
        doc="For how many days `sessions`, `messages` and `deliveries` are kept, by name. Missing or null: without end.",
    ),
    _limits(),
    CheckConstraint("(clock_mode IS NOT NULL) = sandbox AND clock_mode IN ('manual', 'sent_at')", name="clock_mode"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", UuidText, primary_key=True, doc="UUIDv7."),
    Column("name", Text, nullable=False, doc="Name for people; the audit log names the key by it."),
    # The key has 256 random bits, so nothing can be guessed: no salt, no slow hash.
    Column("digest", LargeBinary, nullable=False, unique=True, doc="SHA-256 of the key. The key itself is stored nowhere."),
    Column("prefix", Text, nullable=False, doc="The first characters of the key, to recognise it by."),
    Column("scopes", ARRAY(Text), nullable=False, doc="`ingest`, `read`, `admin`."),
    Column("bots", ARRAY(Text), doc="Ids of the bots that it covers. Null: all bots."),
    _created_at(),
    Column("created_by", UuidText, index=True, doc="The key that made it. Null: the command line."),
    Column("revoked_at", Timestamptz, doc="Null: it is not revoked."),
    _revision(),
    Column("expires_at", Timestamptz, doc="From when on it is refused. Null: it does not expire."),
    Column("last_used_at", Timestamptz, doc="A request that it was used for, within a minute of the last one."),
    Column("note", Text, doc="The admin's own words about it."),
    _limits(),
)

saved_views = Table(
    "saved_views",
    metadata,
    Column("key_id", UuidText, ForeignKey("api_keys.id"), primary_key=True, doc="The key that saved it."),
    Column("name", Text, primary_key=True, doc="Name for people, unique for the key."),
    Column("query", Text, nullable=False, doc="Parameters of the list of sessions, as in an address."),
    Column("saved_at", Timestamptz, nullable=False, server_default=NOW, doc="When it was saved last."),
)

policies = Table(
    "policies",
    metadata,
    Column("bot_id", Text, ForeignKey("bots.id"), primary_key=True, doc="The bot."),
    Column("version", Integer, primary_key=True, doc="From 1, one more at each change."),
    Column("policy", JSONB, nullable=False, doc="As the admin saved it: a preset's name and overrides, not the result."),
    Column("effective_at", Timestamptz, nullable=False, doc="From when it holds, in the bot's own time."),
    Column("changed_at", Timestamptz, nullable=False, server_default=NOW, doc="When it was saved."),
    Column("changed_by", UuidText, doc="The key that saved it. Null: none did."),
    _revision(),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", UuidText, primary_key=True, doc="UUIDv7."),
    Column("bot_id", Text, ForeignKey("bots.id"), nullable=False, index=True, doc="The bot whose events it receives."),
    Column("url", Text, nullable=False, doc="Where webhooks are sent."),
    Column(
        "private_allowed",
        Boolean,
        nullable=False,
        server_default=TRUE,
        doc="Whether the key that set the URL may name private addresses; a host name is resolved again at each delivery.",
    ),
    Column("events", ARRAY(Text), nullable=False, doc="Types of the events that it receives."),
    Column("secret", Text, nullable=False, doc="Signs webhooks: `whsec_` and base64, encrypted (`app.delivery.secret_box`)."),
    Column("previous_secret", Text, doc="The secret before it; signs as well until it expires."),
    Column("previous_secret_expires_at", Timestamptz, doc="When the previous secret stops signing."),
    Column("enabled", Boolean, nullable=False, server_default=TRUE, doc="Whether it receives anything."),
    Column("disabled_reason", Text, doc="Why Adjourn disabled it (the endpoint answered 410). Null: it did not."),
    _created_at(),
    Column("updated_at", Timestamptz, nullable=False, server_default=NOW, doc="The last change."),
    Column("deleted_at", Timestamptz, doc="Null: it is not deleted. The row stays, since deliveries name it."),
    _revision(),
)

sessions = Table(
    "sessions",
    metadata,
    # `opened_at` first: the id carries it, so one key serves look-ups and the order of lists.
    Column("opened_at", Timestamptz, primary_key=True, doc="When it opened."),
    Column("id", UuidText, primary_key=True, doc="UUIDv7 of `opened_at`."),
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("conversation_id", Text, nullable=False, doc="The conversation that it belongs to."),
    Column(
        "thread",
        Text,
        nullable=False,
        server_default=text("''"),
        doc="Which of several side by side: the client's session, the window of channel help. Empty: there is only one.",
    ),
    Column("user_id", Text, nullable=False, doc="The user."),
    Column("channel", Text, nullable=False, doc="The channel, in lower case."),
    Column("closed_at", Timestamptz, nullable=False, doc="When it was over, which is at its deadline if it had one."),
    Column("reason", Text, nullable=False, doc="Why it closed."),
    Column("opening_rule", Text, nullable=False, doc="The row of the rules by which it opened."),
    Column("closing_rule", Text, nullable=False, doc="The row of the rules by which it closed."),
    Column("policy_version", Integer, nullable=False, doc="The version of the policy that it closed under; 0: the defaults."),
    Column("interactive", Boolean, nullable=False, doc="Whether the user took part."),
    Column("developer", Boolean, nullable=False, doc="Whether a developer took part; then it is never billed."),
    Column("counted", Boolean, nullable=False, doc="False if no bot took part and the policy requires one."),
    Column("contained", Boolean, doc="Whether the bot did without a human."),
    Column("outcome", Text, doc="The outcome."),
    Column("trade", Text, nullable=False, doc="The party beside the user: `bot`, or `agent`."),
    *_last_reported(),
    Column("tags", ARRAY(Text), nullable=False, doc="The last set of tags reported."),
    _count("entries", "Entries, late ones not counted."),
    _count("user_entries", "Entries by the user, without `activity`."),
    _count("bot_entries", "Entries by the bot, without `activity`."),
    _count("agent_entries", "Entries by human agents, without `activity`."),
    _count("system_entries", "Entries by the system, without `activity`."),
    _count("interactions", "Entries of type `message` by user, bot and agents."),
    _count("billing_sessions", "Started billing blocks with user activity."),
    Column("first_response_ms", BigInteger, doc="From the user's first message to the first message by bot or agent, in ms."),
    Column("continuation_of", UuidText, doc="The session whose messages these are, collected after Redis lost its last moments."),
    Column("detail", JSONB, nullable=False, doc="The whole record, by position (`app.domain.records.Session`)."),
    Column("archived_at", Timestamptz, nullable=False, server_default=NOW, doc="When the row was written first."),
    Column("session_metadata", JSONB, doc="The bot's own data, merged from its entries: a JSON object."),
    Column("late_entries", Integer, nullable=False, server_default=ZERO, doc="Entries within 24 hours after the close."),
    Column(
        "active_ms",
        BigInteger,
        nullable=False,
        server_default=ZERO,
        doc="From the opening to the last entry that is no `activity`, in ms.",
    ),
    Column("idle_ms", BigInteger, nullable=False, server_default=ZERO, doc="From there to the close, in ms."),
    Column("closed_by", Text, doc="Message id of the entry that closed it; for reason `api` the name of the key."),
    Column(
        "intents",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'"),
        doc="The user's intents in order, without repeats in a row, the first 32.",
    ),
    postgresql_partition_by="RANGE (opened_at)",
)
_NEWEST_FIRST = (sessions.c.opened_at.desc(), sessions.c.id.desc())
Index("ix_sessions_bot", sessions.c.bot_id, *_NEWEST_FIRST)
Index("ix_sessions_closed", sessions.c.closed_at.desc(), sessions.c.id.desc())
Index("ix_sessions_bot_closed", sessions.c.bot_id, sessions.c.closed_at.desc(), sessions.c.id.desc())
# A filter that matches little costs what it returns; without a bot, Postgres 18 steps from one bot to the next.
# Most bots report no intents, and a session without one matches no filter by intent.
for _filtered, _where in (
    (sessions.c.channel, None),
    (sessions.c.intent, sessions.c.intent.is_not(None)),
    (sessions.c.outcome, None),
    (sessions.c.reason, None),
):
    Index(f"ix_sessions_bot_{_filtered.name}", sessions.c.bot_id, _filtered, *_NEWEST_FIRST, postgresql_where=_where)
# Few sessions are of developers, so that the others cost an insert no more than the comparison.
Index("ix_sessions_developer", sessions.c.bot_id, *_NEWEST_FIRST, postgresql_where=sessions.c.developer)
Index("ix_sessions_conversation", sessions.c.conversation_id, sessions.c.bot_id, *_NEWEST_FIRST)
# The bot comes last, so that the list of a user of all bots is in the order of the index, too.
Index("ix_sessions_user", sessions.c.user_id, *_NEWEST_FIRST, sessions.c.bot_id)
Index(
    "ix_sessions_metadata",
    sessions.c.session_metadata,
    postgresql_using="gin",
    postgresql_ops={"session_metadata": "jsonb_path_ops"},
    postgresql_where=sessions.c.session_metadata.is_not(None),
)

messages = Table(
    "messages",
    metadata,
    Column("session_id", UuidText, primary_key=True, doc="The session."),
    Column("sequence", Integer, primary_key=True, doc="Its place in the session, from 1."),
    Column("opened_at", Timestamptz, primary_key=True, doc="The session's, so that both fall into partitions of one month."),
    Column("message_id", Text, nullable=False, doc="The bot's, or the one generated for it."),
    Column("received_at", Timestamptz, nullable=False, doc="When it was received."),
    Column("user_id", Text, nullable=False, doc="The user of the conversation."),
    Column("role", Text, nullable=False, doc="The sender: `user`, `bot`, `agent`, `system`."),
    Column("type", Text, nullable=False, doc="`message`, or which event."),
    Column("text", Text, doc="The text."),
    Column("intent", Text, doc="The intent that the bot recognised."),
    Column("language", Text, doc="A language tag."),
    Column("tags", ARRAY(Text), nullable=False, doc="As reported."),
    Column("sent_at", Timestamptz, doc="When the bot says it was sent."),
    Column("rest", JSONB, doc="The other fields of the entry, by name, that differ from their defaults."),
    Column("late", Boolean, nullable=False, server_default=FALSE, doc="Whether it came after the session had closed."),
    Column("session_language", Text, doc="The session's language, by which the words of the text are compared in a search."),
    postgresql_partition_by="RANGE (opened_at)",
)
# A hash index: message ids are looked up by equality alone, and may be long.
Index("ix_messages_message_id", messages.c.message_id, postgresql_using="hash")

unassigned_entries = Table(
    "unassigned_entries",
    metadata,
    Column(
        "id", UuidText, primary_key=True, doc="uuid5 of bot, conversation, message id and instant: archived twice it is one row."
    ),
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("received_at", Timestamptz, nullable=False, doc="When the entry was received, in the bot's own time."),
    Column("reason", Text, nullable=False, doc="Why it belongs to no session."),
    Column("message_id", Text, nullable=False, doc="The bot's, or the one generated for it."),
    Column("entry", JSONB, nullable=False, doc="The entry as the API shows it."),
)
Index(
    "ix_unassigned_entries_bot",
    unassigned_entries.c.bot_id,
    unassigned_entries.c.received_at.desc(),
    unassigned_entries.c.id.desc(),
)

session_hours = Table(
    "session_hours",
    metadata,
    Column("bot_id", Text, primary_key=True, doc="The bot."),
    Column("hour", Timestamptz, primary_key=True, doc="The hour in UTC in which the sessions opened."),
    Column("channel", Text, primary_key=True, doc="Their channel."),
    Column("developer", Boolean, primary_key=True, doc="Whether developers took part in them."),
    *(
        Column(name, BigInteger, nullable=False, doc=f"A number of the metric `{metric.name}`.")
        for metric in ADDING_UP
        for name in metric.sums
    ),
    *(
        Column(f"{metric.name}_{part}", ARRAY(Integer), nullable=False, doc=f"{doc} `{metric.name}`.")
        for metric in SPREADS
        for part, doc in (("steps", "Steps of the distribution of"), ("counts", "The sessions at each of the steps of"))
    ),
)
Index("ix_session_hours_hour", session_hours.c.hour)

session_intent_hours = Table(
    "session_intent_hours",
    metadata,
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("hour", Timestamptz, nullable=False, doc="The hour in UTC in which the sessions opened."),
    Column("intent", Text, doc="Their last intent. Null: none; so there is no primary key."),
    Column("developer", Boolean, nullable=False, doc="Whether developers took part in them."),
    *(
        Column(name, BigInteger, nullable=False, doc=f"A number of the metric `{metric.name}`.")
        for metric in COUNTS
        for name in metric.sums
    ),
)
Index("ix_session_intent_hours_bot", session_intent_hours.c.bot_id, session_intent_hours.c.hour)
Index("ix_session_intent_hours_hour", session_intent_hours.c.hour)

session_outcome_hours = Table(
    "session_outcome_hours",
    metadata,
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("hour", Timestamptz, nullable=False, doc="The hour in UTC in which the sessions opened."),
    *(
        Column(name, sessions.c[name].type, nullable=sessions.c[name].nullable, doc=f"Their `{name}`, as in `sessions`.")
        for name in OUTCOME_DIMENSIONS
    ),
    Column("developer", Boolean, nullable=False, doc="Whether developers took part in them."),
    *(
        Column(name, BigInteger, nullable=False, doc=f"A number of the metric `{metric.name}`.")
        for metric in OUTCOME_METRICS
        for name in metric.sums
    ),
)
Index("ix_session_outcome_hours_bot", session_outcome_hours.c.bot_id, session_outcome_hours.c.hour)
Index("ix_session_outcome_hours_hour", session_outcome_hours.c.hour)

stale_hours = Table(
    "stale_hours",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, doc="In no particular order."),
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("hour", Timestamptz, nullable=False, doc="An hour of whose sessions one has changed since its roll-up."),
)
Index("ix_stale_hours_bot", stale_hours.c.bot_id, stale_hours.c.hour)

deliveries = Table(
    "deliveries",
    metadata,
    Column(
        "id",
        UuidText,
        primary_key=True,
        doc="uuid5 of session, endpoint and event: the same event archived twice is one delivery.",
    ),
    Column("endpoint_id", UuidText, nullable=False, doc="Where it goes."),
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("session_id", UuidText, doc="The session. Null: a test of the endpoint."),
    Column("event", Text, nullable=False, doc="Type of the event."),
    # Stored, since a signature must not depend on how JSON is written today.
    Column("body", Text, nullable=False, doc="The exact bytes to send."),
    _created_at(),
    Column("event_at", Timestamptz, nullable=False, server_default=NOW, doc="When the event happened, in the bot's own time."),
    Column("queued_at", Timestamptz, nullable=False, server_default=NOW, doc="When it was enqueued, or replayed last."),
    Column(
        "status",
        Text,
        nullable=False,
        server_default=text("'pending'"),
        doc="`pending`, `delivered`, `failed` (given up) or `cancelled` (the endpoint was disabled or deleted).",
    ),
    Column("attempt", Integer, nullable=False, server_default=ZERO, doc="Number of the last attempt."),
    Column(
        "uncounted",
        Integer,
        nullable=False,
        server_default=ZERO,
        doc="Attempts that the retry schedule does not count: before the last replay, or cut short by a stop.",
    ),
    Column("next_attempt_at", Timestamptz, nullable=False, server_default=NOW, doc="When it is due."),
    Column("after_id", UuidText, doc="The delivery that must no longer be pending before this one is tried."),
    Column("leased_until", Timestamptz, doc="Until then a worker has it. Null: none has."),
    Column("delivered_at", Timestamptz, doc="When it was accepted."),
    Column("failed_at", Timestamptz, doc="When it was given up or cancelled."),
    Column("last_status", SmallInteger, doc="HTTP status of the last reply. Null: there was none."),
    Column("last_error", Text, doc="The failure of the last attempt."),
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
    Column("delivery_id", UuidText, ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True, doc="The delivery."),
    Column("attempt", Integer, primary_key=True, doc="Its number, from 1. A missing one is of a worker that died."),
    Column("started_at", Timestamptz, nullable=False, doc="When it began."),
    Column("duration_ms", Integer, doc="How long it took, in ms."),
    Column("status", SmallInteger, doc="HTTP status of the reply. Null: there was none."),
    Column("error", Text, doc="The failure. Null: it was accepted."),
    Column("reply", Text, doc="The first kilobyte of the reply's body."),
)

endpoint_health = Table(
    "endpoint_health",
    metadata,
    # Only endpoints whose last attempt failed have a row: a delivery to a healthy one writes nothing here.
    Column("endpoint_id", UuidText, primary_key=True, doc="The endpoint."),
    Column("failures", Integer, nullable=False, doc="Failed attempts in a row."),
    Column("opened_at", Timestamptz, doc="When its circuit breaker opened. Null: it is closed."),
    Column("resume_at", Timestamptz, doc="When one delivery may try again. Null: the breaker is closed."),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, doc="Ascending."),
    Column("at", Timestamptz, nullable=False, server_default=NOW, doc="When the change was made."),
    Column("key_id", UuidText, doc="The key. Null: not by API; `actor` says by what."),
    Column("actor", Text, nullable=False, doc="Name of the key, `adjourn keys` or `adjourn`."),
    Column("action", Text, nullable=False, doc="A thing and what was done to it: `policy.changed`."),
    Column("bot_id", Text, doc="The bot whose admins may read it. Null: of no one bot."),
    Column("target", Text, nullable=False, doc="Id of the thing."),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb"), doc="Further facts, by name."),
)
for _column in (audit_log.c.key_id, audit_log.c.action, audit_log.c.target):
    Index(f"ix_audit_log_{_column.name}", _column, audit_log.c.id.desc())
Index("ix_audit_log_bot", audit_log.c.bot_id, audit_log.c.id.desc())
Index("ix_audit_log_at", audit_log.c.at)

erasures = Table(
    "erasures",
    metadata,
    Column("id", UuidText, primary_key=True, doc="UUIDv7."),
    Column("bot_id", Text, nullable=False, doc="The bot."),
    Column("user_digest", LargeBinary, nullable=False, doc="SHA-256 of bot and user: the receipt's name of the user."),
    Column("user_id", Text, doc="The user. Null once it is done."),
    Column(
        "state",
        Text,
        nullable=False,
        server_default=text("'pending'"),
        doc="`pending`; `erasing`: the archivist writes no user any more; `done`.",
    ),
    Column("before", Timestamptz, nullable=False, doc="Sessions that opened up to then are erased, in the bot's own time."),
    Column("requested_at", Timestamptz, nullable=False, server_default=NOW, doc="When it was requested."),
    Column("requested_by", Text, nullable=False, doc="Name of the key that requested it."),
    Column("key_id", UuidText, doc="That key."),
    Column("completed_at", Timestamptz, doc="When it was done."),
    Column(
        "strands",
        JSONB,
        nullable=False,
        server_default=text("'[]'::jsonb"),
        doc="Conversation, thread and session of each session that Redis may hold. Empty once it is done.",
    ),
    Column("counts", JSONB, nullable=False, server_default=text("'{}'::jsonb"), doc="How much was erased so far, by kind."),
    CheckConstraint("state IN ('pending', 'erasing', 'done')", name="state"),
)
Index("ix_erasures_user", erasures.c.bot_id, erasures.c.user_digest)
Index("ix_erasures_open", erasures.c.id, postgresql_where=text("state <> 'done'"))

rejects = Table(
    "rejects",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, doc="Ascending."),
    Column("at", Timestamptz, nullable=False, server_default=NOW, doc="When the record was rejected."),
    Column("bot_id", Text, doc="The bot. Null: the record cannot be read."),
    Column("session_id", UuidText, index=True, doc="The session of its last event. Null: the record cannot be read."),
    Column("error", Text, nullable=False, doc="Why it could not be archived."),
    # Bytes, since a text that Postgres refused once would be refused here too.
    Column("payload", LargeBinary, nullable=False, doc="The record and its transcripts (`app.closing.rejects`)."),
)
