"""Let the dispatcher claim by endpoint: leases and predecessors are found by index, and a breaker's state has a table."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "endpoint_health",
        sa.Column("endpoint_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", INSTANT, nullable=True),
        sa.Column("resume_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("pk_endpoint_health")),
    )
    op.add_column("deliveries", sa.Column("event_at", INSTANT, server_default=sa.text("now()"), nullable=False))
    op.add_column("deliveries", sa.Column("queued_at", INSTANT, server_default=sa.text("now()"), nullable=False))
    op.add_column("deliveries", sa.Column("uncounted", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.drop_index("ix_deliveries_due", table_name="deliveries")
    op.create_index(
        "ix_deliveries_leased",
        "deliveries",
        ["endpoint_id"],
        postgresql_where=sa.text("status = 'pending' AND leased_until IS NOT NULL"),
    )
    op.create_index(
        "ix_deliveries_after",
        "deliveries",
        ["after_id"],
        postgresql_where=sa.text("status = 'pending' AND after_id IS NOT NULL"),
    )
    op.create_index("ix_deliveries_created", "deliveries", [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")])
    # Each delivery is written three times and its old rows stand where the next claim looks: clean up early.
    op.execute("ALTER TABLE deliveries SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)")


def downgrade() -> None:
    op.execute("ALTER TABLE deliveries RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor)")
    op.drop_index("ix_deliveries_created", table_name="deliveries")
    op.drop_index("ix_deliveries_after", table_name="deliveries")
    op.drop_index("ix_deliveries_leased", table_name="deliveries")
    op.create_index("ix_deliveries_due", "deliveries", ["next_attempt_at"], postgresql_where=sa.text("status = 'pending'"))
    op.drop_column("deliveries", "uncounted")
    op.drop_column("deliveries", "queued_at")
    op.drop_column("deliveries", "event_at")
    op.drop_table("endpoint_health")
