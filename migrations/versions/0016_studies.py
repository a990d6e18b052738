"""DICOM studies, their instances and predictions, and sealed return addresses.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("received", TIME, nullable=True),
        sa.Column("due", TIME, nullable=True),
        sa.Column("completed", sa.String(16), nullable=True),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        *(sa.Column(name, JSON, nullable=True) for name in ("series", "roles", "clinical")),
        sa.Column("assembled", sa.String(64), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.UniqueConstraint("caller", "uid", name="studies_uid"),
    )
    op.create_index("studies_page", "studies", ["caller", "created"])
    op.create_index("studies_due", "studies", ["state", "due"])
    op.create_table(
        "instances",
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("uid", sa.String(64), primary_key=True),
        sa.Column("study_id", sa.String(36), sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("series_uid", sa.String(64), nullable=False),
        sa.Column("sop_class", sa.String(64), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=True, index=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("received", TIME, nullable=False),
    )
    op.create_index("instances_series", "instances", ["study_id", "series_uid"])
    op.create_table(
        "study_predictions",
        sa.Column("study_id", sa.String(36), sa.ForeignKey("studies.id"), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), nullable=False, unique=True),
        sa.Column("why", sa.String(16), nullable=False),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_table(
        "return_addresses",
        sa.Column("prediction_id", sa.String(36), sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
