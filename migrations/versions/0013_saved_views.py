"""Make the table of saved views, which are queries of the list of sessions under names, and an index of closes of all bots.

The list of all bots by close read every session: 8 s of a million, now a few ms. Making the index takes seconds for each million
of sessions, in which archiving waits.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "saved_views",
        sa.Column("key_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("saved_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "name", name="pk_saved_views"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_saved_views_key_id"),
    )
    op.create_index("ix_sessions_closed", "sessions", [sa.literal_column("closed_at DESC"), sa.literal_column("id DESC")])


def downgrade() -> None:
    op.drop_index("ix_sessions_closed", table_name="sessions")
    op.drop_table("saved_views")
