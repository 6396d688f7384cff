"""Roll closed sessions up by hour, bot, channel and developer, and note the hours whose sessions have changed.

All hours that there are get a note, so that a worker fills the table after the upgrade: until then the numbers are counted from
the sessions as before. The triggers are on the whole table: a change made to a partition by name gives no note.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0011"
down_revision = "0010"
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
    "active_ms_sum",
    "active_ms_count",
    "idle_ms_sum",
    "idle_ms_count",
    "first_response_ms_sum",
    "first_response_ms_count",
    "interactions_per_session_sum",
    "interactions_per_session_count",
    "close_lag_ms_sum",
    "close_lag_ms_count",
)
SPREADS = ("active_ms", "idle_ms", "first_response_ms", "close_lag_ms")
CHANGES = {"INSERT": "NEW", "UPDATE": "NEW", "DELETE": "OLD"}


def upgrade() -> None:
    op.create_table(
        "session_hours",
        sa.Column("bot_id", sa.Text, primary_key=True),
        sa.Column("hour", TIMESTAMP(timezone=True), primary_key=True),
        sa.Column("channel", sa.Text, primary_key=True),
        sa.Column("developer", sa.Boolean, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
        *(sa.Column(f"{name}_{part}", ARRAY(sa.Integer), nullable=False) for name in SPREADS for part in ("steps", "counts")),
    )
    op.create_index("ix_session_hours_hour", "session_hours", ["hour"])
    op.create_table(
        "stale_hours",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("bot_id", sa.Text, nullable=False),
        sa.Column("hour", TIMESTAMP(timezone=True), nullable=False),
    )
    op.execute("""
        CREATE FUNCTION note_stale_hours() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO stale_hours (bot_id, hour) SELECT DISTINCT bot_id, date_trunc('hour', opened_at, 'UTC') FROM changed;
            RETURN NULL;
        END $$
    """)
    for change, rows in CHANGES.items():
        op.execute(
            f"CREATE TRIGGER note_stale_hours_{change.lower()} AFTER {change} ON sessions REFERENCING {rows} TABLE AS changed "
            "FOR EACH STATEMENT EXECUTE FUNCTION note_stale_hours()"
        )
    op.execute(
        "INSERT INTO stale_hours (bot_id, hour) SELECT DISTINCT bot_id, date_trunc('hour', opened_at, 'UTC') FROM sessions"
    )


def downgrade() -> None:
    for change in CHANGES:
        op.execute(f"DROP TRIGGER note_stale_hours_{change.lower()} ON sessions")
    op.execute("DROP FUNCTION note_stale_hours")
    op.drop_table("stale_hours")
    op.drop_table("session_hours")
