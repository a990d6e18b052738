"""Storage commitment: what an archive says of the results it was sent, and what senders ask of the listener.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("dicom_deliveries", sa.Column("commitment", sa.String(16), nullable=True))
    op.add_column("dicom_deliveries", sa.Column("commitment_reason", sa.String(64), nullable=True))
    op.add_column("dicom_deliveries", sa.Column("transaction_uid", sa.String(64), nullable=True))
    op.create_index("ix_dicom_deliveries_transaction_uid", "dicom_deliveries", ["transaction_uid"])
    op.create_table(
        "commitment_requests",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("title", sa.String(16), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("instances", sa.JSON, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("due", TIME, nullable=False, index=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.UniqueConstraint("tenant", "title", "transaction_uid", name="commitment_requests_transaction"),
    )
