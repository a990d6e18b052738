"""Silent trials: protocols, sealed answers and looks.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

TIME = sa.DateTime(timezone=True)
IN_A_TRIAL = sa.text("trial IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "trials",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("protocol", sa.JSON(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("stopped", TIME, nullable=True),
        sa.Column("stop_reason", sa.String(500), nullable=True),
        sa.Column("unsealed", TIME, nullable=True),
    )
    op.create_table(
        "trial_entries",
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("trial", sa.String(63), sa.ForeignKey("trials.name"), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("outcome_entered", TIME, nullable=True),
        sa.Column("outcome_changes", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("changed_unsealed", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("ix_trial_entries_trial", "trial_entries", ["trial"])
    op.create_table(
        "trial_looks",
        sa.Column("trial", sa.String(63), sa.ForeignKey("trials.name"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
    )
    op.add_column("predictions", sa.Column("trial", sa.String(63), nullable=True))
    op.create_index("predictions_trial", "predictions", ["trial"], sqlite_where=IN_A_TRIAL, postgresql_where=IN_A_TRIAL)
