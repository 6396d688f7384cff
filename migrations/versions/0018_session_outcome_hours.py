"""Roll closed sessions up by their outcome, reason and parties, too, and index stale hours and sessions of developers.

All hours get a note, so that a worker fills the table after the upgrade: until then numbers are counted from the sessions. The
index by user gets the order of lists before the bot: a list of one user of all bots read all of the user's sessions to sort them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0018"
down_revision = "0016"
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
    "active_ms_sum",
    "active_ms_count",
)


NEWEST_FIRST = ("opened_at DESC", "id DESC")


def upgrade() -> None:
    op.create_table(
        "session_outcome_hours",
        sa.Column("bot_id", sa.Text, nullable=False),
        sa.Column("hour", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("trade", sa.Text, nullable=False),
        sa.Column("interactive", sa.Boolean, nullable=False),
        sa.Column("contained", sa.Boolean),
        sa.Column("developer", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
    )
    op.create_index("ix_session_outcome_hours_bot", "session_outcome_hours", ["bot_id", "hour"])
    op.create_index("ix_session_outcome_hours_hour", "session_outcome_hours", ["hour"])
    newest_first: list[str | sa.ColumnElement[Any]] = [sa.literal_column(order) for order in NEWEST_FIRST]
    op.create_index("ix_sessions_developer", "sessions", ["bot_id", *newest_first], postgresql_where=sa.text("developer"))
    op.drop_index("ix_sessions_user", "sessions")
    op.create_index("ix_sessions_user", "sessions", ["user_id", *newest_first, "bot_id"])
    op.create_index("ix_stale_hours_bot", "stale_hours", ["bot_id", "hour"])
    op.execute("INSERT INTO stale_hours (bot_id, hour) SELECT DISTINCT bot_id, hour FROM session_hours")


def downgrade() -> None:
    op.drop_index("ix_stale_hours_bot", "stale_hours")
    op.drop_index("ix_sessions_user", "sessions")
    op.create_index("ix_sessions_user", "sessions", ["user_id", "bot_id", *(sa.literal_column(order) for order in NEWEST_FIRST)])
    op.drop_index("ix_sessions_developer", "sessions")
    op.drop_table("session_outcome_hours")
