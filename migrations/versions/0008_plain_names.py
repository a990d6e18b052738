"""Names of docs/glossary.md: load requests, heartbeats and queue positions.

Processes of the release before do not know these names, so stop them first. Load results are dropped, because their
members are renamed; each worker writes them again with its next heartbeat. There is no downgrade, as in the first
migration.
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
    for table, old, new in RENAMED_COLUMNS:  # plain SQL: Alembic cannot rename a column on SQLite
        op.execute(sa.text(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"))
    op.execute(sa.text("UPDATE workers SET load_results = NULL"))
