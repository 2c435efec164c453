import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from qure_provider.ledger.ledger import Ledger

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of our own; it does not run as root, so root hands it to the account of Debian's package."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="qure-postgresql-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        account = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = folder / "data"
        make = [PROGRAMS / "initdb", "-D", data, "-U", "ledger", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, timeout=60, **account)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [PROGRAMS / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder, **account
            )
        stack.callback(server.wait, 20)
        stack.callback(server.send_signal, signal.SIGINT)  # ends now; SIGTERM waits for every client to leave
        url = f"postgresql+psycopg2://ledger@127.0.0.1:{port}"
        until = time.monotonic() + 20
        while True:
            try:
                with create_engine(f"{url}/postgres").connect():
                    break
            except Exception:
                if server.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield url


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
