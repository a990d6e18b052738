"""Load requests and their results, shadow scores, and queue positions.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "demands",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("wanted", sa.Boolean(), nullable=False),
        sa.Column("ticket", sa.Integer(), nullable=False),
        sa.Column("asked", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "shadow_scores",
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("model_name", sa.String(63), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("answered", sa.String(64), nullable=False),
        sa.Column("difference", sa.Float(), nullable=True),
        sa.Column("agrees", sa.Boolean(), nullable=True),
        sa.Column("error", sa.String(64), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("shadow_scores_version", "shadow_scores", ["model_name", "version"])
    op.add_column("workers", sa.Column("answers", sa.JSON(), nullable=True))
    op.add_column("predictions", sa.Column("turn", sa.Integer(), nullable=False, server_default="0"))
