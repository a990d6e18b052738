"""Pause of a prediction while its storage cannot be used.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("waiting", sa.JSON(none_as_null=True), nullable=True))
