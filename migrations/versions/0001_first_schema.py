"""The first schema: every table of `app.archive.tables`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)
JSON = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("bots", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("revoked_at", INSTANT, nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_index(op.f("ix_api_keys_revision"), "api_keys", ["revision"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("key_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("detail", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_bot", "audit_log", ["bot_id", sa.literal_column("id DESC")], unique=False)
    op.create_table(
        "bots",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("clock_mode", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "(clock_mode IS NOT NULL) = sandbox AND clock_mode IN ('manual', 'sent_at')", name=op.f("ck_bots_clock_mode")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bots")),
    )
    op.create_index(op.f("ix_bots_revision"), "bots", ["revision"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("after_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("leased_until", INSTANT, nullable=True),
        sa.Column("delivered_at", INSTANT, nullable=True),
        sa.Column("failed_at", INSTANT, nullable=True),
        sa.Column("last_status", sa.SmallInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed', 'cancelled')", name=op.f("ck_deliveries_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(
        "ix_deliveries_bot",
        "deliveries",
        ["bot_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_deliveries_due", "deliveries", ["next_attempt_at"], unique=False, postgresql_where=sa.text("status = 'pending'")
    )
    op.create_index(
        "ix_deliveries_due_endpoint",
        "deliveries",
        ["endpoint_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_deliveries_failed", "deliveries", ["failed_at"], unique=False, postgresql_where=sa.text("status = 'failed'")
    )
    op.create_index("ix_deliveries_session", "deliveries", ["session_id"], unique=False)
    op.create_table(
        "instance",
        sa.Column("id", sa.Uuid(as_uuid=False), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
    )
    op.create_table(
        "messages",
        sa.Column("session_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("opened_at", INSTANT, nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("intent", sa.Text(), nullable=True),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("sent_at", INSTANT, nullable=True),
        sa.Column("rest", JSON, nullable=True),
        sa.PrimaryKeyConstraint("session_id", "sequence", "opened_at", name=op.f("pk_messages")),
        postgresql_partition_by="RANGE (opened_at)",
    )
    op.create_table(
        "rejects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=True),
        sa.Column("session_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejects")),
    )
    op.create_table(
        "session_stats",
        sa.Column("hour", INSTANT, nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("developer", sa.Boolean(), nullable=False),
        sa.Column("sessions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("counted", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("interactive", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("contained", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("billing_sessions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("interactions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("entries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("by_reason", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("by_outcome", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duration_buckets", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("first_response_buckets", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("hour", "bot_id", "channel", "developer", name=op.f("pk_session_stats")),
    )
    op.create_index("ix_session_stats_bot", "session_stats", ["bot_id", "hour"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("opened_at", INSTANT, nullable=False),
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("thread", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("closed_at", INSTANT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("opening_rule", sa.Text(), nullable=False),
        sa.Column("closing_rule", sa.Text(), nullable=False),
        sa.Column("policy_version", sa.Integer(), nullable=False),
        sa.Column("interactive", sa.Boolean(), nullable=False),
        sa.Column("developer", sa.Boolean(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("contained", sa.Boolean(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("trade", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("intent", sa.Text(), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("user_entries", sa.Integer(), nullable=False),
        sa.Column("bot_entries", sa.Integer(), nullable=False),
        sa.Column("agent_entries", sa.Integer(), nullable=False),
        sa.Column("system_entries", sa.Integer(), nullable=False),
        sa.Column("interactions", sa.Integer(), nullable=False),
        sa.Column("billing_sessions", sa.Integer(), nullable=False),
        sa.Column("first_response_ms", sa.BigInteger(), nullable=True),
        sa.Column("continuation_of", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("detail", JSON, nullable=False),
        sa.Column("archived_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("opened_at", "id", name=op.f("pk_sessions")),
        postgresql_partition_by="RANGE (opened_at)",
    )
    op.create_index(
        "ix_sessions_bot", "sessions", ["bot_id", sa.literal_column("opened_at DESC"), sa.literal_column("id DESC")], unique=False
    )
    op.create_index(
        "ix_sessions_conversation",
        "sessions",
        ["conversation_id", "bot_id", sa.literal_column("opened_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_sessions_user",
        "sessions",
        ["user_id", "bot_id", sa.literal_column("opened_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_table(
        "attempts",
        sa.Column("delivery_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_attempts_delivery_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name=op.f("pk_attempts")),
    )
    op.create_table(
        "endpoints",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_expires_at", INSTANT, nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["bot_id"], ["bots.id"], name=op.f("fk_endpoints_bot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_endpoints")),
    )
    op.create_index(op.f("ix_endpoints_bot_id"), "endpoints", ["bot_id"], unique=False)
    op.create_index(op.f("ix_endpoints_revision"), "endpoints", ["revision"], unique=False)
    op.create_table(
        "policies",
        sa.Column("bot_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("policy", JSON, nullable=False),
        sa.Column("effective_at", INSTANT, nullable=False),
        sa.Column("changed_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["bot_id"], ["bots.id"], name=op.f("fk_policies_bot_id")),
        sa.PrimaryKeyConstraint("bot_id", "version", name=op.f("pk_policies")),
    )
    op.create_index(op.f("ix_policies_revision"), "policies", ["revision"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_policies_revision"), table_name="policies")
    op.drop_table("policies")
    op.drop_index(op.f("ix_endpoints_revision"), table_name="endpoints")
    op.drop_index(op.f("ix_endpoints_bot_id"), table_name="endpoints")
    op.drop_table("endpoints")
    op.drop_table("attempts")
    op.drop_index("ix_sessions_user", table_name="sessions")
    op.drop_index("ix_sessions_conversation", table_name="sessions")
    op.drop_index("ix_sessions_bot", table_name="sessions")
    op.drop_table("sessions")
    op.drop_index("ix_session_stats_bot", table_name="session_stats")
    op.drop_table("session_stats")
    op.drop_table("rejects")
    op.drop_table("messages")
    op.drop_table("instance")
    op.drop_index("ix_deliveries_session", table_name="deliveries")
    op.drop_index("ix_deliveries_failed", table_name="deliveries", postgresql_where=sa.text("status = 'failed'"))
    op.drop_index("ix_deliveries_due_endpoint", table_name="deliveries", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index("ix_deliveries_due", table_name="deliveries", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index("ix_deliveries_bot", table_name="deliveries")
    op.drop_table("deliveries")
    op.drop_index(op.f("ix_bots_revision"), table_name="bots")
    op.drop_table("bots")
    op.drop_index("ix_audit_log_bot", table_name="audit_log")
    op.drop_table("audit_log")
    op.drop_index(op.f("ix_api_keys_revision"), table_name="api_keys")
    op.drop_table("api_keys")
