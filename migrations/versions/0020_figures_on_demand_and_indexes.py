"""Job of the figures, device and precision of the answer, and the indexes of very many predictions.

Earlier releases queued the job with the answer, so figures that are not drawn yet have one. Most of the indexes leave
out erased predictions. There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

KEPT = sa.text("erased IS NULL")
UNDRAWN = sa.text("figures = 'pending' AND figures_queued IS NULL")
OF_KEPT = {
    "page": ["caller", "created", "id", "subject"],
    "state": ["caller", "status", "created", "id"],
    "version": ["caller", "model_version", "model_name", "created", "id"],
    "subject": ["caller", "subject", "created", "id"],
    "by_subject": ["caller", "subject", "id"],
    "probability": ["caller", "probability", "id"],
    "study_uid": ["caller", "study_instance_uid", "created", "id"],
    "accession": ["caller", "accession_number", "created", "id"],
    "due": ["finished"],
}


def upgrade() -> None:
    op.add_column("predictions", sa.Column("figures_queued", sa.DateTime(timezone=True), nullable=True))
    op.add_column("predictions", sa.Column("device", sa.String(8), nullable=True))
    op.add_column("predictions", sa.Column("precision", sa.String(16), nullable=True))
    op.execute("UPDATE predictions SET figures_queued = finished WHERE figures = 'pending'")
    op.create_index("predictions_undrawn", "predictions", ["created"], sqlite_where=UNDRAWN, postgresql_where=UNDRAWN)
    for name in ("page", "status", "subject"):
        op.drop_index(f"predictions_{name}", "predictions")
    for name, columns in OF_KEPT.items():
        op.create_index(f"predictions_{name}", "predictions", columns, sqlite_where=KEPT, postgresql_where=KEPT)
    op.create_index("predictions_finished", "predictions", ["finished"])
    op.create_index("predictions_status", "predictions", ["status", "queue_position", "caller"])
    op.create_index("audit_action", "audit", ["action", "target"])
