"""Let keys expire, remember their last use and a note, and refuse every change of the audit log.

`expires_at` is part of what running processes know of a key, so that a change of it stamps a revision; `last_used_at` and `note`
are not. The trigger on `audit_log` holds for every role of the product, also for one that owns the table.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WATCHED = "name, digest, scopes, bots, revoked_at"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("expires_at", TIMESTAMP(timezone=True)))
    op.add_column("api_keys", sa.Column("last_used_at", TIMESTAMP(timezone=True)))
    op.add_column("api_keys", sa.Column("note", sa.Text))
    op.create_index("ix_api_keys_created_by", "api_keys", ["created_by"])
    watch(f"{WATCHED}, expires_at")
    op.execute("""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% of % is refused: its rows are only added', TG_OP, TG_TABLE_NAME USING ERRCODE = '42501';
        END $$
    """)
    op.execute(
        "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER refuse_change ON audit_log")
    op.execute("DROP FUNCTION refuse_change")
    watch(WATCHED)
    op.drop_index("ix_api_keys_created_by", table_name="api_keys")
    for column in ("note", "last_used_at", "expires_at"):
        op.drop_column("api_keys", column)


def watch(columns: str) -> None:
    for name, each in (("lock_revisions", "STATEMENT"), ("stamp_revision", "ROW")):
        op.execute(f"DROP TRIGGER {name} ON api_keys")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OF {columns} ON api_keys FOR EACH {each} EXECUTE FUNCTION {name}()"
        )
