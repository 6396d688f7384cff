"""Stamp a revision on every change of configuration, so that its order is the order of commits.

Triggers, since a change can come from a route, the command line, the dispatcher (an endpoint that answers 410) or an admin's own
SQL, and one that was forgotten would never reach the running processes. The lock is taken before any row's, so that two writers
wait for each other and never deadlock; it ends with the transaction.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Only the columns that running processes use: a breaker's counter on an endpoint is no change of configuration.
WATCHED = {
    "bots": "name, sandbox, clock_mode, deleted_at",
    "policies": "policy, effective_at",
    "endpoints": "url, events, enabled, deleted_at",
    "api_keys": "name, digest, scopes, bots, revoked_at",
}


def upgrade() -> None:
    op.execute("INSERT INTO instance DEFAULT VALUES")
    op.execute("CREATE SEQUENCE config_revision AS bigint")
    op.execute("""
        CREATE FUNCTION lock_revisions() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock(1633970691);
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION stamp_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.revision := nextval('config_revision');
            RETURN NEW;
        END $$
    """)
    for table, columns in WATCHED.items():
        op.execute(
            f"CREATE TRIGGER lock_revisions BEFORE INSERT OR UPDATE OF {columns} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION lock_revisions()"
        )
        op.execute(
            f"CREATE TRIGGER stamp_revision BEFORE INSERT OR UPDATE OF {columns} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION stamp_revision()"
        )


def downgrade() -> None:
    for table in WATCHED:
        op.execute(f"DROP TRIGGER stamp_revision ON {table}")
        op.execute(f"DROP TRIGGER lock_revisions ON {table}")
    op.execute("DROP FUNCTION stamp_revision")
    op.execute("DROP FUNCTION lock_revisions")
    op.execute("DROP SEQUENCE config_revision")
    op.execute("DELETE FROM instance")
