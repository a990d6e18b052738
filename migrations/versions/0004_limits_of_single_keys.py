"""Limits of single API keys.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("per_minute", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("max_body", sa.BigInteger(), nullable=True))
