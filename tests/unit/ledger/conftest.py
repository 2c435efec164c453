import time

import pytest
from sqlalchemy import create_engine, text
from support.postgresql import running_postgresql

from qure_provider.ledger.ledger import Ledger


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a PostgreSQL server of our own."""
    with running_postgresql() as server:
        yield server.url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def url(request, tmp_path):
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
        return
    server = request.getfixturevalue("postgresql")
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    name = f"ledger_{time.monotonic_ns()}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield f"{server}/{name}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def ledger(url):
    with Ledger.open(url, create=True) as ledger:
        yield ledger
