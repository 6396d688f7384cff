"""Make the views of schema `adjourn_v1`, with a comment on every column, and the role `adjourn_reader` that may read them.

The views stay as they are whatever becomes of the tables; a change that would break a query makes a schema `adjourn_v2`.
Where the user that migrates may not create roles, none is made, and the views can be granted by hand.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = "adjourn_v1"
ROLE = "adjourn_reader"

Columns = dict[str, tuple[str, str]]
"""Name to SQL and comment."""


def _instant(position: int) -> str:
    """An instant of the record, by its place there; null where the record is older and has none."""
    return f"TIMESTAMPTZ 'epoch' + (s.detail->>{position})::bigint * INTERVAL '1 millisecond'"


SESSIONS: Columns = {
    "session_id": ("s.id", "Id of the session."),
    "bot": ("s.bot_id", "Id of the bot."),
    "conversation_id": ("s.conversation_id", "Id of the conversation."),
    "thread": ("nullif(s.thread, '')", "The client's session (method client) or the help window; null for none."),
    "user_id": ("s.user_id", "Id of the user."),
    "channel": ("s.channel", "The channel."),
    "opened_at": ("s.opened_at", "When it opened. Bounds on it decide which months are read."),
    "opened_by": ("s.detail->>34", "Id of the message that opened it."),
    "opening_rule": ("s.opening_rule", "The rule by which it opened."),
    "previous_session_id": ("(s.detail->>36)::uuid", "Id of the session before it in its conversation."),
    "closed_at": ("s.closed_at", "When it closed: at its deadline, or by the entry or request that closed it."),
    "closed_by": ("s.closed_by", "Id of the message, or name of the API key, that closed it; null for silence."),
    "reason": ("s.reason", "Why it closed."),
    "closing_rule": ("s.closing_rule", "The rule by which it closed."),
    "policy_version": ("s.policy_version", "Version of the policy that it closed under."),
    "interactive": ("s.interactive", "Whether the user took part."),
    "developer": ("s.developer", "Whether a developer took part: left out of the metrics of the API."),
    "counted": ("s.counted", "Whether it counts: the policy setting requires_bot leaves out sessions without a bot."),
    "trade": ("s.trade", "The party beside the user: bot, or agent with the bot assisting."),
    "outcome": ("s.outcome", "The outcome."),
    "contained": ("s.contained", "Whether it closed without escalation or hand-off, and was not given up."),
    "language": ("s.language", "The last language reported."),
    "intent": ("s.intent", "The last intent reported."),
    "intents": ("s.intents", "The intents of the user in order, without repeats in a row, the first 32."),
    "tags": ("s.tags", "The last set of tags."),
    "session_metadata": ("s.session_metadata", "Data of the bot, merged from its entries."),
    "entries": ("s.entries", "Entries, late ones left out."),
    "late_entries": ("s.late_entries", "Entries that came after the close, within 24 hours."),
    "user_entries": ("s.user_entries", "Entries by the user."),
    "bot_entries": ("s.bot_entries", "Entries by the bot."),
    "agent_entries": ("s.agent_entries", "Entries by human agents."),
    "system_entries": ("s.system_entries", "Entries by the system."),
    "interactions": ("s.interactions", "Messages by user, bot and agents."),
    "billing_sessions": ("s.billing_sessions", "Started blocks of billing_block_minutes with user activity."),
    "first_response_ms": ("s.first_response_ms", "From the user's first message to the first answer, in ms."),
    "active_ms": ("s.active_ms", "From the opening to the last entry that is no activity, in ms."),
    "idle_ms": ("s.idle_ms", "From there to the close, in ms."),
    "first_user_at": (_instant(24), "When the user's first entry came."),
    "first_bot_at": (_instant(25), "When the bot's first entry came."),
    "first_agent_at": (_instant(26), "When the first entry of a human agent came."),
    "first_system_at": (_instant(27), "When the system's first entry came."),
    "last_entry_at": (_instant(5), "When the last entry came."),
    "last_user_at": (_instant(12), "When the user's last entry came."),
    "last_bot_at": (_instant(14), "When the bot's last entry came."),
    "last_agent_at": (_instant(21), "When the last entry of a human agent came."),
    "last_system_at": (_instant(23), "When the system's last entry came."),
    "handed_off_at": (_instant(49), "When it was handed off to a human."),
    "escalated_at": (_instant(50), "When it was escalated."),
    "resolved_at": (_instant(51), "When it was resolved."),
    "survey_sent_at": (_instant(52), "When a survey was sent."),
    "survey_answered_at": (_instant(53), "When the survey was answered."),
    "reminded_at": (_instant(40), "When the user was reminded."),
    "continuation_of": ("s.continuation_of", "Id of the archived session whose messages these are: Redis had lost its close."),
    "archived_at": ("s.archived_at", "When it was written to the archive."),
}

MESSAGES: Columns = {
    "session_id": ("m.session_id", "Id of the session."),
    "sequence": ("m.sequence", "Place in the session, from 1."),
    "bot": ("s.bot_id", "Id of the bot."),
    "conversation_id": ("s.conversation_id", "Id of the conversation."),
    "session_opened_at": ("m.opened_at", "When the session opened. Bounds on it decide which months are read."),
    "message_id": ("m.message_id", "Id of the message."),
    "received_at": ("m.received_at", "When it was received: its instant for all rules."),
    "sent_at": ("m.sent_at", "When it was sent, as the bot reported it."),
    "user_id": ("m.user_id", "Id of the user."),
    "channel": ("coalesce(m.rest->>'channel', s.channel)", "The channel that it came on."),
    "role": ("m.role", "The sender: user, bot, agent or system."),
    "type": ("m.type", "A message, or the name of an event."),
    "text": ("m.text", "The text of a message."),
    "intent": ("m.intent", "The intent."),
    "intent_valid": ("coalesce((m.rest->>'intent_valid')::boolean, true)", "Whether the input was valid for the intent."),
    "language": ("m.language", "The language."),
    "tags": ("m.tags", "The tags."),
    "late": ("m.late", "Whether it came after the session had closed."),
    "source": ("m.rest->>'source'", "How an article was opened: click, link or search."),
    "in_reply_to": ("m.rest->>'in_reply_to'", "The event or message that it replies to."),
    "sentiment": ("m.rest->'sentiment'", "Tones and their levels."),
    "context": ("m.rest->'context'", "Topic and details of the dialog."),
    "metadata": ("m.rest->'metadata'", "Data of the bot about this message."),
}

_CONVERSED = "FILTER (WHERE s.counted AND s.interactive)"


def _outcome(outcome: str) -> str:
    return f"count(*) FILTER (WHERE s.counted AND s.interactive AND s.outcome = '{outcome}')"


DAILY: Columns = {
    "day": ("(s.opened_at AT TIME ZONE 'UTC')::date", "The day in UTC on which the sessions opened."),
    "bot": ("s.bot_id", "Id of the bot."),
    "channel": ("s.channel", "The channel."),
    "sessions": ("count(*)", "Closed sessions, those of developers left out, as in every column here."),
    "counted": ("count(*) FILTER (WHERE s.counted)", "Sessions that count."),
    "interactive": (f"count(*) {_CONVERSED}", "Sessions that count and in which the user took part."),
    "contained": ("count(*) FILTER (WHERE s.counted AND s.interactive AND s.contained)", "Contained ones of the interactive."),
    "escalated": (_outcome("escalated"), "Escalated ones of the interactive."),
    "handed_off": (_outcome("handed_off"), "Handed off ones of the interactive."),
    "resolved": (_outcome("resolved"), "Resolved ones of the interactive."),
    "dropped": (_outcome("dropped"), "Of the interactive, those that ended with the user unanswered."),
    "abandoned": (_outcome("abandoned"), "Abandoned ones of the interactive."),
    "users": ("count(DISTINCT s.user_id) FILTER (WHERE s.counted)", "Different users. Not to be added up over days."),
    "entries": ("coalesce(sum(s.entries) FILTER (WHERE s.counted), 0)", "Entries of the sessions that count."),
    "interactions": ("coalesce(sum(s.interactions) FILTER (WHERE s.counted), 0)", "Messages by user, bot and agents in them."),
    "billing_sessions": ("coalesce(sum(s.billing_sessions) FILTER (WHERE s.counted), 0)", "Billing sessions."),
    "active_ms": ("coalesce(sum(s.active_ms) FILTER (WHERE s.counted), 0)", "Their active time in ms, added up."),
    "first_responses": ("count(s.first_response_ms) FILTER (WHERE s.counted)", "Sessions with a first response."),
    "first_response_ms": (
        "coalesce(sum(s.first_response_ms) FILTER (WHERE s.counted), 0)",
        "Their time to it in ms, added up: divide by first_responses.",
    ),
}

VIEWS: dict[str, tuple[Columns, str, str]] = {
    "sessions": (SESSIONS, "FROM public.sessions s", "Closed sessions, one a row."),
    "messages": (
        MESSAGES,
        "FROM public.messages m JOIN public.sessions s ON s.id = m.session_id AND s.opened_at = m.opened_at",
        "Messages and events of closed sessions, one a row.",
    ),
    "daily": (
        DAILY,
        "FROM public.sessions s WHERE NOT s.developer GROUP BY 1, 2, 3",
        "Sums over closed sessions by day in UTC, bot and channel.",
    ),
}


def upgrade() -> None:
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    op.execute(f"COMMENT ON SCHEMA {SCHEMA} IS 'Views of closed sessions for reports. Columns keep their names and meanings.'")
    for view, (columns, source, comment) in VIEWS.items():
        listed = ",\n".join(f"{sql} AS {name}" for name, (sql, _) in columns.items())
        op.execute(f"CREATE OR REPLACE VIEW {SCHEMA}.{view} AS SELECT {listed} {source}")
        op.execute(f"COMMENT ON VIEW {SCHEMA}.{view} IS {_quoted(comment)}")
        for name, (_, meaning) in columns.items():
            op.execute(f"COMMENT ON COLUMN {SCHEMA}.{view}.{name} IS {_quoted(meaning)}")
    op.execute(_MAKE_ROLE)
    op.execute(_GRANT)


def downgrade() -> None:
    op.execute(f"DROP SCHEMA {SCHEMA} CASCADE")  # the role belongs to the server and stays


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_MAKE_ROLE = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        CREATE ROLE {ROLE} NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;  -- another database of this server made it just now
    WHEN insufficient_privilege THEN RAISE NOTICE 'role {ROLE} was not made: this user may not create roles';
END $$
"""

_GRANT = f"""
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE};
        GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {ROLE};
    END IF;
END $$
"""
