"""Tell a new answer from an old one"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply the change."""
    with op.batch_alter_table("resources", schema=None) as batch_op:
        batch_op.add_column(sa.Column("digest", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("baseline", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("sent_in_parts", sa.Boolean(), nullable=False, server_default=sa.false()))
