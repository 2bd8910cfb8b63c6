"""The first tables, and a history that only grows.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.Float(53)
_DIGEST = sa.String(71)


def upgrade() -> None:
    """Makes them."""
    _make_versions()
    _make_aliases()
    op.create_table(
        "gates",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("digest", _DIGEST, nullable=False, unique=True),
        sa.Column("candidate", _DIGEST, nullable=False),
        sa.Column("against", _DIGEST, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("stored", _TIME, nullable=False),
    )
    op.create_index("gates_by_pair", "gates", ["candidate", "against", "id"])
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("version_id", _KEY, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
    )
    _keep_history()


def _make_versions() -> None:
    op.create_table(
        "entries",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.Column("newest", sa.Integer(), nullable=False),
        sa.Column("versions", sa.Integer(), nullable=False),
    )
    op.create_index("entries_by_update", "entries", ["updated"])
    op.create_table(
        "versions",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("entry_id", _KEY, sa.ForeignKey("entries.id"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("adapter_digest", _DIGEST, nullable=False),
        sa.Column("base_digest", sa.Text()),
        sa.Column("base_ref", sa.Text()),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("removed", _TIME),
        sa.UniqueConstraint("entry_id", "number", name="versions_by_number"),
        sa.UniqueConstraint("entry_id", "digest", name="versions_by_digest"),
    )
    op.create_index("versions_by_adapter", "versions", ["adapter_digest"])
    op.create_table(
        "files",
        sa.Column("version_id", _KEY, sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
    )
    op.create_index("files_by_digest", "files", ["digest"])
    op.create_table(
        "tags",
        sa.Column("version_id", _KEY, sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )


def _make_aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("entry_id", _KEY, sa.ForeignKey("entries.id"), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("version_id", _KEY, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.UniqueConstraint("entry_id", "alias", name="aliases_by_name"),
    )
    op.create_index("aliases_by_version", "aliases", ["version_id"])
    op.create_table(
        "history",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("entry_id", _KEY, sa.ForeignKey("entries.id"), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("from_id", _KEY, sa.ForeignKey("versions.id")),
        sa.Column("to_id", _KEY, sa.ForeignKey("versions.id")),
        sa.Column("why", sa.Text()),
        sa.Column("evidence", _DIGEST),
        sa.Column("override", sa.Text()),
    )
    op.create_index("history_by_alias", "history", ["entry_id", "alias", "id"])
    op.create_index("history_by_target", "history", ["to_id"])
    op.create_index("history_by_time", "history", ["at"])
    forced = sa.text("override IS NOT NULL")
    op.create_index("history_by_override", "history", ["entry_id"], sqlite_where=forced, postgresql_where=forced)


def _keep_history() -> None:
    """Lets the database itself refuse to change or remove a row of the history."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER history_keeps_{change.lower()} BEFORE {change} ON history "
                "BEGIN SELECT RAISE(ABORT, 'the history only grows'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION lamina_history_keeps() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the history only grows'; END $$"
    )
    op.execute(
        "CREATE TRIGGER history_keeps BEFORE UPDATE OR DELETE ON history "
        "FOR EACH ROW EXECUTE FUNCTION lamina_history_keeps()"
    )
