"""Plain names: load requests, heartbeats and queue positions are called what they are.

The results that workers have noted are dropped, since their members are renamed: each worker writes them again with its
next heartbeat. There is no way down, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


RENAMED_COLUMNS = (
    ("model_requests", "ticket", "generation"),
    ("model_requests", "asked", "requested"),
    ("workers", "beat", "last_heartbeat"),
    ("workers", "beats", "heartbeats"),
    ("workers", "answers", "load_results"),
    ("predictions", "turn", "queue_position"),
)


def upgrade() -> None:
    op.rename_table("demands", "model_requests")
    for table, old, new in RENAMED_COLUMNS:  # plain SQL: Alembic renames no column on SQLite, which can
        op.execute(sa.text(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"))
    op.execute(sa.text("UPDATE workers SET load_results = NULL"))
