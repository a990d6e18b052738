"""DICOM destinations of results, and the state of each delivery.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "dicom_destinations",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("address", sa.String(2000), nullable=False),
        sa.Column("called", sa.String(16), nullable=False),
        sa.Column("calling", sa.String(16), nullable=False),
        sa.Column("tls", sa.Boolean, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=True),
        sa.Column("created", TIME, nullable=False),
        sa.Column("ended", TIME, nullable=True),
    )
    op.create_table(
        "dicom_deliveries",
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("destination_id", sa.String(16), sa.ForeignKey("dicom_destinations.id"), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(64), nullable=True),
        sa.Column("since", TIME, nullable=False),
        sa.Column("changed", TIME, nullable=False),
    )
