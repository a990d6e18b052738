"""What each series of a DICOM study was taken for, and the flags of its conversion.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for name in ("series", "intake_flags"):
        op.add_column("predictions", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
