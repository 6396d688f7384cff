"""Drop `rejects.kind`: every reject is a record of the event stream, so the column held one value."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("rejects", "kind")


def downgrade() -> None:
    op.add_column("rejects", sa.Column("kind", sa.Text(), server_default=sa.text("'session'"), nullable=False))
    op.alter_column("rejects", "kind", server_default=None)
