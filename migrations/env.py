"""Environment of Alembic: runs in the transaction of `Database.upgrade`, which holds the migration lock."""

from __future__ import annotations

from alembic import context

from app.database.destination_tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
    transactional_ddl=True,
)
context.run_migrations()
