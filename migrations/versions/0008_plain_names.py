"""Plain names: load requests, heartbeats and queue positions are called what they are.

The results that workers have noted are dropped, since their members are renamed: each worker writes them again with its
next heartbeat. There is no way down, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.rename_table("demands", "model_requests")
    op.alter_column("model_requests", "ticket", new_column_name="generation")
    op.alter_column("model_requests", "asked", new_column_name="requested")
    op.alter_column("workers", "beat", new_column_name="last_heartbeat")
    op.alter_column("workers", "beats", new_column_name="heartbeats")
    op.alter_column("workers", "answers", new_column_name="load_results")
    op.execute(sa.text("UPDATE workers SET load_results = NULL"))
    op.alter_column("predictions", "turn", new_column_name="queue_position")
