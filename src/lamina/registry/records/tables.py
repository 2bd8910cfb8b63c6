"""The tables as they are now. Migrations lead to them; a test holds that they do.

Times are seconds since 1970. Digests are `sha256:` and 64 hexadecimal digits.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA = MetaData()
# SQLite numbers rows by itself only where the key is an INTEGER.
KEY = BigInteger().with_variant(Integer, "sqlite")
TIME = Float(53)
FORCED = text("override IS NOT NULL")

ENTRIES = Table(
    "entries",
    METADATA,
    Column("id", KEY, primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("created", TIME, nullable=False),
    Column("updated", TIME, nullable=False),
    Column("newest", Integer, nullable=False),
    Column("versions", Integer, nullable=False),
    Index("entries_by_update", "updated"),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("id", KEY, primary_key=True),
    Column("entry_id", KEY, ForeignKey("entries.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("adapter_digest", String(71), nullable=False),
    Column("base_digest", Text),
    Column("base_ref", Text),
    Column("method", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created", TIME, nullable=False),
    Column("who", Text, nullable=False),
    Column("removed", TIME),
    UniqueConstraint("entry_id", "number", name="versions_by_number"),
    UniqueConstraint("entry_id", "digest", name="versions_by_digest"),
    Index("versions_by_adapter", "adapter_digest"),
)

# Which blobs a version needs, its manifest among them.
FILES = Table(
    "files",
    METADATA,
    Column("version_id", KEY, ForeignKey("versions.id"), primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Index("files_by_digest", "digest"),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("id", KEY, primary_key=True),
    Column("entry_id", KEY, ForeignKey("entries.id"), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version_id", KEY, ForeignKey("versions.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("updated", TIME, nullable=False),
    UniqueConstraint("entry_id", "alias", name="aliases_by_name"),
    Index("aliases_by_version", "version_id"),
)

HISTORY = Table(
    "history",
    METADATA,
    Column("id", KEY, primary_key=True),
    Column("entry_id", KEY, ForeignKey("entries.id"), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("at", TIME, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("from_id", KEY, ForeignKey("versions.id")),
    Column("to_id", KEY, ForeignKey("versions.id")),
    Column("why", Text),
    Column("evidence", String(71)),
    Column("override", Text),
    Index("history_by_alias", "entry_id", "alias", "id"),
    Index("history_by_target", "to_id"),
    Index("history_by_time", "at"),
    Index("history_by_override", "entry_id", sqlite_where=FORCED, postgresql_where=FORCED),
)

TAGS = Table(
    "tags",
    METADATA,
    Column("version_id", KEY, ForeignKey("versions.id"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# Records of gates. `against` is empty for the bare base, since NULL is equal to nothing.
GATES = Table(
    "gates",
    METADATA,
    Column("id", KEY, primary_key=True),
    Column("digest", String(71), nullable=False, unique=True),
    Column("candidate", String(71), nullable=False),
    Column("against", String(71), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("stored", TIME, nullable=False),
    Index("gates_by_pair", "candidate", "against", "id"),
)

# Readers on their way: `gc` leaves what they read.
LEASES = Table(
    "leases",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("version_id", KEY, ForeignKey("versions.id"), nullable=False),
    Column("expires", TIME, nullable=False),
    Column("who", Text, nullable=False),
)
