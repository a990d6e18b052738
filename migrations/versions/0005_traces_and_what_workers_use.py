"""Span of the request of a prediction, and memory of each worker.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("span_id", sa.String(16), nullable=True))
    op.add_column("workers", sa.Column("usage", sa.JSON(none_as_null=True), nullable=True))
