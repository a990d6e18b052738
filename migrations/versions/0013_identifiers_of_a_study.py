"""Study Instance UID and accession number of a prediction, and an index of its subject.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("study_instance_uid", sa.String(64), nullable=True))
    op.add_column("predictions", sa.Column("accession_number", sa.String(16), nullable=True))
    op.create_index("predictions_subject", "predictions", ["caller", "subject", "created"])
