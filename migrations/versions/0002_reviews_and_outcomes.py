"""Reviews of predictions, and their outcomes.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), nullable=False),
        sa.Column("reviewer", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32), nullable=True),
        sa.Column("comment", sa.String(500), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_reviews_prediction_id", "reviews", ["prediction_id"])
    op.create_table(
        "outcomes",
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("etici", sa.String(8), nullable=False),
        sa.Column("rescue_treatment", sa.Boolean(), nullable=False),
        sa.Column("final_stenosis_percent", sa.Float(), nullable=True),
        sa.Column("refractory", sa.Boolean(), nullable=True),
        sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    )
