"""Warnings withhold the decision of a prediction, unless the caller accepts them.

Predictions of earlier releases keep the decision that they were made with. There is no downgrade, as in the first
migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("accept_warnings", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("predictions", sa.Column("withheld", sa.JSON(), nullable=True))
