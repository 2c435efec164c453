"""Remember what may have arrived, and who asks for computation"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply the change."""
    with op.batch_alter_table("resources", schema=None) as batch_op:
        batch_op.add_column(sa.Column("computing_run_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("computing_until", sa.Float(), nullable=True))
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.add_column(sa.Column("may_have_arrived", sa.Boolean(), server_default=sa.false(), nullable=False))
