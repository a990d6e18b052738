"""The first tables.

There is no downgrade, because no command may drop tables with results of patients. Restore a backup instead.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        _text("id", 36, primary_key=True),
        _text("caller", 64),
        _text("status", 16),
        _text("stage", 16, nullable=True),
        sa.Column("progress", sa.Float(), nullable=False),
        _time("created"),
        _time("started", nullable=True),
        _time("finished", nullable=True),
        _time("erased", nullable=True),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _text("model_name", 63),
        _text("model_version", 64),
        _text("model_digest", 71),
        _text("subject", 128, nullable=True),
        sa.Column("explain", sa.Boolean(), nullable=False),
        _json("clinical", nullable=True),
        _json("inputs", nullable=True),
        _text("trace_id", 64, nullable=True),
        _text("body_digest", 128, nullable=True),
        sa.Column("probability", sa.Float(), nullable=True),
        _json("interval", nullable=True),
        _json("folds", nullable=True),
        _json("decision", nullable=True),
        _json("flags", nullable=True),
        _json("perfusion", nullable=True),
        _json("timings", nullable=True),
        _json("error", nullable=True),
    )
    op.create_index("predictions_page", "predictions", ["caller", "created", "id"])
    op.create_index("predictions_status", "predictions", ["status"])
    op.create_table(
        "attributions",
        _text("prediction_id", 36, sa.ForeignKey("predictions.id"), primary_key=True),
        sa.Column("base", sa.Float(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False),
        _json("clinical"),
        _json("imaging"),
        _json("regions"),
        _json("maps"),
    )
    op.create_table("blobs", _text("digest", 64, primary_key=True), sa.Column("bytes", sa.BigInteger(), nullable=False))
    op.create_table(
        "artifacts",
        _text("prediction_id", 36, sa.ForeignKey("predictions.id"), primary_key=True),
        _text("name", 128, primary_key=True),
        _text("digest", 64, sa.ForeignKey("blobs.digest")),
        _text("media_type", 64),
    )
    op.create_index("ix_artifacts_digest", "artifacts", ["digest"])
    op.create_table(
        "idempotency_keys",
        _text("caller", 64, primary_key=True),
        _text("key", 255, primary_key=True),
        _text("token", 32),
        _text("owner", 64),
        _text("prediction_id", 36, sa.ForeignKey("predictions.id"), nullable=True),
        _text("body_digest", 128, nullable=True),
        _time("expires"),
    )
    op.create_index("ix_idempotency_keys_prediction_id", "idempotency_keys", ["prediction_id"])
    op.create_index("ix_idempotency_keys_expires", "idempotency_keys", ["expires"])
    op.create_table(
        "api_keys",
        _text("id", 16, primary_key=True),
        _text("name", 64),
        _text("tenant", 64),
        _text("hash", 64, unique=True),
        _json("scopes"),
        _time("created"),
        _time("expires", nullable=True),
        _time("revoked", nullable=True),
    )
    op.create_table(
        "workers",
        _text("id", 36, primary_key=True),
        _text("host", 255),
        sa.Column("pid", sa.Integer(), nullable=False),
        _text("device", 16),
        _json("models"),
        _time("started"),
        _time("beat"),
        sa.Column("beats", sa.Integer(), nullable=False),
    )
    _audit()


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=False),
        _time("at"),
        _text("actor", 64),
        _text("action", 64),
        _text("target", 128),
        _json("detail"),
        _text("previous", 64),
        _text("hash", 64),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        _text("hash", 64),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_refuses_{change.lower()} BEFORE {change} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_refuses BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses()"
        )


def _text(name: str, length: int, *constraints: Any, nullable: bool = False, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), *constraints, nullable=nullable, **options)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=nullable)
