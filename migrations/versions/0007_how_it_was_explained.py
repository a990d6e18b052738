"""Requested and used method of an explanation.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("exact", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("attributions", sa.Column("method", sa.String(16), nullable=True))
    op.add_column("attributions", sa.Column("error", sa.Float(), nullable=True))
    op.add_column("attributions", sa.Column("affected", sa.String(8), nullable=True))
