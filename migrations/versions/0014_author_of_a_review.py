"""Name of the key or token that sent a review. Earlier reviews have none.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("reviews", sa.Column("author", sa.String(64), nullable=True))
