"""Seconds between the frames of a CT perfusion series, as the caller sent them.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("ctp_interval_s", sa.Float(), nullable=True))
