"""Whether the figures and the report of a prediction are drawn.

Earlier releases drew them before the answer, so a prediction with a report has its figures. There is no downgrade, as
in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("figures", sa.String(8), nullable=True))
    op.execute(
        "UPDATE predictions SET figures = 'ready' "
        "WHERE id IN (SELECT prediction_id FROM artifacts WHERE name = 'report.html')"
    )
