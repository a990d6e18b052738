"""Erasures need the scope `erase`; a key of an earlier release that may predict keeps its right to erase.

There is no downgrade, as in the first migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key_id, scopes in connection.execute(sa.select(keys.c.id, keys.c.scopes)).all():
        if "predict" in scopes and "erase" not in scopes:
            extended = sorted([*scopes, "erase"])
            connection.execute(keys.update().where(keys.c.id == key_id).values(scopes=extended))
