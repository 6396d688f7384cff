"""Make the table of erasures: which user's data is removed, how far that is, and the receipt that stays."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    instant = TIMESTAMP(timezone=True)
    op.create_table(
        "erasures",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("bot_id", sa.Text, nullable=False),
        sa.Column("user_digest", sa.LargeBinary, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("state", sa.Text, server_default=sa.text("'pending'"), nullable=False),
        sa.Column("before", instant, nullable=False),
        sa.Column("requested_at", instant, server_default=sa.text("now()"), nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("key_id", sa.Uuid(as_uuid=False)),
        sa.Column("completed_at", instant),
        sa.Column("strands", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("counts", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sa.CheckConstraint("state IN ('pending', 'erasing', 'done')", name=op.f("ck_erasures_state")),
    )
    op.create_index("ix_erasures_user", "erasures", ["bot_id", "user_digest"])
    op.create_index("ix_erasures_open", "erasures", ["id"], postgresql_where=sa.text("state <> 'done'"))


def downgrade() -> None:
    op.drop_table("erasures")
