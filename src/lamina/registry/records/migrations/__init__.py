"""Migrations of the records, run by alembic when a registry is opened."""
