"""Opening the ledger's database and bringing its tables up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, column, create_engine, event, inspect, make_url, select, table, text
from sqlalchemy.pool import NullPool

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "qure_alembic_version"
HEAD = "0003"
_BUSY_TIMEOUT_MS = 60_000


class LedgerError(Exception):
    """The ledger can't be used as configured; the message says what to change."""


def open_engine(url: str) -> Engine:
    """Return an engine for the ledger.

    SQLite is opened with write-ahead logging, and every transaction takes the write lock at its beginning, so that two
    writers wait for each other instead of failing half-way. What a statement was given is left out of errors and logs:
    it names patients.

    Args:
        url: An SQLAlchemy URL, of SQLite or PostgreSQL.

    Raises:
        LedgerError: If the database is neither.
    """
    backend = make_url(url).get_backend_name()
    if backend == "postgresql":
        return create_engine(url, hide_parameters=True, pool_size=1, max_overflow=4, pool_pre_ping=True)
    if backend != "sqlite":
        raise LedgerError(f"The ledger runs on SQLite or PostgreSQL, not on {backend}: change [qure] ledger_conn_id.")
    engine = create_engine(url, hide_parameters=True, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def is_current(engine: Engine) -> bool:
    """Return whether the tables are of the version that this code was written for."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return False
        version = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
        return bool(version == HEAD)


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; where two processes try at once, the second finds it done."""
    if is_current(engine):
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7387301)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
