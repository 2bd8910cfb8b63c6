"""The registry's records: which versions and aliases there are, in SQLite or PostgreSQL, changed by whole transactions.

Tables and their migrations are SQLAlchemy's and alembic's (`tables.py`, `migrations/`). Queries are SQL that both
databases understand, with `:name` for values: `postgres.py` runs them through SQLAlchemy, and `sqlite.py` through
Python's own driver, because importing SQLAlchemy takes longer than any command on a registry.
"""
