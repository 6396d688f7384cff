"""Give each bot and each key limits of its own, in place of those of the settings, and index the audit log by its filters.

The limits are part of what running processes know of bots and keys, so that a change of them stamps a revision.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

WATCHED = {
    "bots": "name, sandbox, clock_mode, deleted_at",
    "api_keys": "name, digest, scopes, bots, revoked_at, expires_at",
}
FILTERED = ("key_id", "action", "target")


def upgrade() -> None:
    for table, columns in WATCHED.items():
        op.add_column(table, sa.Column("limits", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False))
        _watch(table, f"{columns}, limits")
    for column in FILTERED:
        op.create_index(f"ix_audit_log_{column}", "audit_log", [column, sa.text("id DESC")])
    op.create_index("ix_audit_log_at", "audit_log", ["at"])


def downgrade() -> None:
    for column in (*FILTERED, "at"):
        op.drop_index(f"ix_audit_log_{column}", table_name="audit_log")
    for table, columns in WATCHED.items():
        _watch(table, columns)
        op.drop_column(table, "limits")


def _watch(table: str, columns: str) -> None:
    for name, each in (("lock_revisions", "STATEMENT"), ("stamp_revision", "ROW")):
        op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OF {columns} ON {table} FOR EACH {each} EXECUTE FUNCTION {name}()"
        )
