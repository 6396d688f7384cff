"""Count attempts in four bytes: at 32,767 a delivery that was replayed many times stopped all others.

Each table is written anew once, under a lock that its readers wait for, too: about ten seconds for a million deliveries.
Entries are taken and sessions close meanwhile; what is archived and delivered waits. Both locks are asked for at first, in the
order in which the dispatcher takes them, and not for long: behind a wait for a backup's end everybody else would queue.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LOCK = ("SET LOCAL lock_timeout = '10s'", "LOCK TABLE deliveries, attempts", "SET LOCAL lock_timeout TO DEFAULT")


def upgrade() -> None:
    _retype(sa.Integer())


def downgrade() -> None:
    _retype(sa.SmallInteger())


def _retype(kind: sa.types.TypeEngine[int]) -> None:
    for statement in LOCK:
        op.execute(statement)
    # One statement for both columns: each would write the table anew.
    op.execute(f"ALTER TABLE deliveries ALTER COLUMN attempt TYPE {kind}, ALTER COLUMN uncounted TYPE {kind}")
    op.execute(f"ALTER TABLE attempts ALTER COLUMN attempt TYPE {kind}")
