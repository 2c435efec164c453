"""A PostgreSQL server of our own on the loopback interface, from the programs of the system's package."""

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

from sqlalchemy import create_engine

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


class Postgresql:
    """A server; it does not run as root, so root hands it to the account of Debian's package.

    Attributes:
        port: Where it listens.
        url: Its URL, without a database.
    """

    def __init__(self, folder):
        self._folder, self._data = folder, folder / "data"
        self._account = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        make = [PROGRAMS / "initdb", "-D", self._data, "-U", "ledger", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, timeout=60, **self._account)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg2://ledger@127.0.0.1:{self.port}"

    def start(self):
        """Start it, and wait until it answers."""
        options = ["-p", str(self.port), "-h", "127.0.0.1", "-k", self._folder, "-F"]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [PROGRAMS / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._account,
            )
        until = time.monotonic() + 20
        while True:
            try:
                with create_engine(f"{self.url}/postgres").connect():
                    return
            except Exception:
                if self._server.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def stop(self):
        """End it now, whoever is connected."""
        self._server.send_signal(signal.SIGINT)  # SIGTERM waits for every client to leave
        self._server.wait(20)


@contextlib.contextmanager
def running_postgresql():
    """Run a server until the end of the block."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="qure-postgresql-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = Postgresql(folder)
        server.start()
        stack.callback(server.stop)
        yield server
