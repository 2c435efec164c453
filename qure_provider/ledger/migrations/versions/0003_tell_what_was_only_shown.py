"""Tell what was only shown by a dry run from what is to be sent"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply the change."""
    # Not in a batch: there alembic makes SQLite's table anew, and forgets that no key is given twice.
    op.add_column("resources", sa.Column("only_shown", sa.Boolean(), server_default=sa.false(), nullable=False))
