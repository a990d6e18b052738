"""Studies that are fetched from an archive, found by accession number, and complete by their number of instances.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("studies", sa.Column("expected", sa.Integer, nullable=True))
    op.add_column("studies", sa.Column("accession", sa.String(64), nullable=True))
    op.add_column("studies", sa.Column("pull", sa.JSON, nullable=True))
    op.create_index("ix_studies_accession", "studies", ["accession"])
    op.add_column("dicom_destinations", sa.Column("results", sa.Boolean, nullable=False, server_default=sa.true()))
