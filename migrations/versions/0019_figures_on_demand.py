"""When the job that draws the figures was queued, and an index of the predictions without such a job.

Earlier releases queued the job with the answer, so figures that are not drawn yet have one. There is no downgrade, as
in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

UNDRAWN = sa.text("figures = 'pending' AND figures_queued IS NULL")


def upgrade() -> None:
    op.add_column("predictions", sa.Column("figures_queued", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE predictions SET figures_queued = finished WHERE figures = 'pending'")
    op.create_index("predictions_undrawn", "predictions", ["created"], sqlite_where=UNDRAWN, postgresql_where=UNDRAWN)
