"""Instances of a request for storage commitment to an archive: a report counts for those that it names.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.add_column("dicom_deliveries", sa.Column("asked_items", sa.JSON, nullable=True))
