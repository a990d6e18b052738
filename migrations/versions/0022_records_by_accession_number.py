"""Clinical records that wait for a study with an accession number.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.create_table(
        "waiting_records",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("accession", sa.String(64), nullable=False),
        sa.Column("clinical", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.UniqueConstraint("caller", "accession", name="waiting_records_accession"),
    )
