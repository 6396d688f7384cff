"""Roll closed sessions up by hour, bot, intent and developer, too, without distributions.

All hours get a note, so that a worker fills the table after the upgrade: until then numbers are counted from the sessions.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

SUMS = (
    "sessions",
    "counted",
    "interactive_part",
    "interactive_whole",
    "interactions",
    "entries",
    "entries_user",
    "entries_bot",
    "entries_agent",
    "entries_system",
    "billing_sessions",
    "contained_part",
    "contained_whole",
    "escalated_part",
    "escalated_whole",
    "handed_off_part",
    "handed_off_whole",
    "resolved_part",
    "resolved_whole",
    "dropped_part",
    "dropped_whole",
    "abandoned_part",
    "abandoned_whole",
    "interactions_per_session_sum",
    "interactions_per_session_count",
)


def upgrade() -> None:
    op.create_table(
        "session_intent_hours",
        sa.Column("bot_id", sa.Text, nullable=False),
        sa.Column("hour", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("intent", sa.Text),
        sa.Column("developer", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
    )
    op.create_index("ix_session_intent_hours_bot", "session_intent_hours", ["bot_id", "hour"])
    op.create_index("ix_session_intent_hours_hour", "session_intent_hours", ["hour"])
    op.execute("INSERT INTO stale_hours (bot_id, hour) SELECT DISTINCT bot_id, hour FROM session_hours")


def downgrade() -> None:
    op.drop_table("session_intent_hours")
