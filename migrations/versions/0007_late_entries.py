"""Add what late entries, look-ups and filters need: columns of sessions and messages, indexes, entries without a session.

Sessions that version 0.1.0 archived get `active_ms`, `idle_ms` and `closed_by` from their records, which writes each row anew:
12 s for 200,000 sessions of four messages each on two busy cores, in which archiving waits; entries are accepted and sessions
close meanwhile. The event `session.started` is called `session.opened`. `session_stats` was never written and goes.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)
JSON = postgresql.JSONB(astext_type=sa.Text())
TEXTS = postgresql.ARRAY(sa.Text())

# Positions in the record as version 0.1.0 wrote it.
OPENED_AT_MS = 3
LAST_AT_MS = (12, 14, 21, 23)  # by user, bot, agent, system
CLOSED_AT_MS = 43
CLOSED_BY = 46

LOCK = ("SET LOCAL lock_timeout = '10s'", "LOCK TABLE sessions, messages", "SET LOCAL lock_timeout TO DEFAULT")


def upgrade() -> None:
    for statement in LOCK:
        op.execute(statement)
    _add_columns()
    _fill_columns()
    _add_indexes()
    op.create_table(
        "unassigned_entries",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("entry", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unassigned_entries")),
    )
    op.create_index(
        "ix_unassigned_entries_bot",
        "unassigned_entries",
        ["bot_id", sa.literal_column("received_at DESC"), sa.literal_column("id DESC")],
    )
    op.drop_table("session_stats")
    _rename_event("session.started", "session.opened")


def downgrade() -> None:
    _rename_event("session.opened", "session.started")
    _create_session_stats()
    op.drop_table("unassigned_entries")
    op.drop_index("ix_rejects_session_id", table_name="rejects")
    op.drop_index("ix_messages_message_id", table_name="messages")
    op.drop_index("ix_sessions_metadata", table_name="sessions")
    op.drop_index("ix_sessions_bot_closed", table_name="sessions")
    op.drop_column("messages", "late")
    for column in ("intents", "closed_by", "idle_ms", "active_ms", "late_entries", "session_metadata"):
        op.drop_column("sessions", column)


def _add_columns() -> None:
    op.add_column("sessions", sa.Column("session_metadata", JSON))
    op.add_column("sessions", sa.Column("late_entries", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("sessions", sa.Column("active_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("sessions", sa.Column("idle_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("sessions", sa.Column("closed_by", sa.Text()))
    op.add_column("sessions", sa.Column("intents", TEXTS, server_default=sa.text("'{}'"), nullable=False))
    op.add_column("messages", sa.Column("late", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def _fill_columns() -> None:
    last = ", ".join(f"(detail->>{at})::bigint" for at in (OPENED_AT_MS, *LAST_AT_MS))
    op.execute(f"""
        UPDATE sessions SET
            active_ms = greatest({last}) - (detail->>{OPENED_AT_MS})::bigint,
            idle_ms = (detail->>{CLOSED_AT_MS})::bigint - greatest({last}),
            closed_by = detail->>{CLOSED_BY}
    """)


def _add_indexes() -> None:
    op.create_index(
        "ix_sessions_bot_closed", "sessions", ["bot_id", sa.literal_column("closed_at DESC"), sa.literal_column("id DESC")]
    )
    op.create_index(
        "ix_sessions_metadata",
        "sessions",
        ["session_metadata"],
        postgresql_using="gin",
        postgresql_ops={"session_metadata": "jsonb_path_ops"},
    )
    op.create_index("ix_messages_message_id", "messages", ["message_id"], postgresql_using="hash")
    op.create_index("ix_rejects_session_id", "rejects", ["session_id"])


def _rename_event(old: str, new: str) -> None:
    """In subscriptions, and in deliveries; the body of one that was sent stays as it was."""
    op.execute(f"UPDATE endpoints SET events = array_replace(events, '{old}', '{new}') WHERE '{old}' = ANY(events)")
    op.execute(f"""
        UPDATE deliveries SET event = '{new}', body = CASE WHEN status = 'pending'
            THEN replace(body, '"type":"{old}"', '"type":"{new}"') ELSE body END
        WHERE event = '{old}'
    """)


def _create_session_stats() -> None:
    op.create_table(
        "session_stats",
        sa.Column("hour", INSTANT, nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("developer", sa.Boolean(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for name in ("sessions", "counted", "interactive", "contained", "billing_sessions", "interactions", "entries")
        ),
        sa.Column("by_reason", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("by_outcome", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duration_buckets", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("first_response_buckets", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("hour", "bot_id", "channel", "developer", name=op.f("pk_session_stats")),
    )
    op.create_index("ix_session_stats_bot", "session_stats", ["bot_id", "hour"])
