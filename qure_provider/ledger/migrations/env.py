"""Alembic's entry: it upgrades the connection that ``database.migrate`` hands it."""

from __future__ import annotations

from alembic import context

from qure_provider.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="qure_alembic_version",
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
