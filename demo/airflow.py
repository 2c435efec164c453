"""A whole Airflow on this machine, for as long as it is needed: started, spoken to, and ended without a trace.

``airflow standalone`` is no process manager: a SIGTERM leaves its components, it listens on every interface, and some
of its ports are fixed. So the components are started one by one, on the loopback interface and on free ports.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import requests

from demo.processes import Processes

USER = "admin"
COMPONENTS: Mapping[str, Sequence[str]] = {
    "api-server": ("--workers", "1"),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
"""Name and options, the one that takes longest to start first; log servers are needed by distributed executors only."""


class AirflowError(RuntimeError):
    """Airflow did not start, or did not do what it was asked; the message says where to look."""


class AirflowStack:
    """API server, scheduler (LocalExecutor), DAG processor and triggerer over a SQLite database.

    Nothing is taken from an existing Airflow: the home is its own, the caller's ``AIRFLOW_*`` variables are dropped.

    Args:
        home: The ``AIRFLOW_HOME``, a folder that is new or empty.
        dags_folder: Where the DAG files are.
        env: Further environment variables of every component, ``AIRFLOW__SECTION__KEY`` among them.
        parallelism: How many tasks run at once.
        processes: What starts and ends the components; None for an own one.

    Attributes:
        processes: The components.
        password: Of the user ``admin``, made anew.
        url: Where the UI and the API are.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags_folder: Path,
        env: Mapping[str, str] | None = None,
        parallelism: int = 4,
        processes: Processes | None = None,
    ) -> None:
        self.home = home.resolve()
        self.dags_folder = dags_folder.resolve()
        self.parallelism = parallelism
        self.password = secrets.token_urlsafe(12)
        self.processes = processes or Processes(self.home / "logs")
        port, *log_ports = _free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        self.env = {**_clean(os.environ), **self._settings(port, log_ports), **(env or {})}
        self.api = AirflowApi(self.url, USER, self.password)

    def start(self) -> Self:
        """Make the database, then start the components; returns while they are still starting.

        Raises:
            AirflowError: The database could not be made.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        if (self.home / "airflow.db").exists():
            raise AirflowError(f"{self.home} already holds an Airflow: choose another folder or remove it")
        (self.home / "plugins").mkdir()
        passwords = self.home / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({USER: self.password}), encoding="utf-8")
        self._migrate()
        try:
            for component in COMPONENTS:
                self._begin(component)
        except BaseException:
            self.stop()
            raise
        return self

    def wait_ready(self, timeout: float = 120, *, dag_ids: Iterable[str] = ()) -> None:
        """Wait until every component beats and some DAGs are there.

        Args:
            timeout: Seconds.
            dag_ids: The DAGs.

        Raises:
            AirflowError: It took too long, a component ended, or a DAG file does not import.
        """
        deadline = time.monotonic() + timeout
        missing = ["the API server"]
        while time.monotonic() < deadline:
            self.check()
            try:
                missing = self._missing(dag_ids)
            except (requests.ConnectionError, requests.Timeout):
                missing = ["the API server"]
            if not missing:
                return
            time.sleep(0.5)
        raise AirflowError(f"Airflow was not ready after {timeout:g} s, missing: {', '.join(missing)}; see {self.logs}")

    @property
    def logs(self) -> Path:
        """The folder of the components' logs."""
        return self.processes.logs

    def check(self) -> None:
        """Look whether all components still run.

        Raises:
            AirflowError: One ended.
        """
        if ended := self.processes.ended():
            logs = ", ".join(str(self.logs / f"{name}.log") for name in ended)
            raise AirflowError(f"Ended by itself: {', '.join(ended)}; see {logs}")

    def kill(self, component: str) -> None:
        """Kill a component as ``kill -9`` does, and start it anew, as whatever watches over it would.

        What its process had started, such as tasks, lives on as its orphan.

        Args:
            component: One of ``COMPONENTS``.
        """
        self.processes.kill(component)
        self._begin(component)

    def revive(self) -> None:
        """Start anew what ended by itself, as whatever watches over it would.

        Over SQLite, which locks no rows, the scheduler ends when somebody clears a task while it writes to it.
        """
        for component in self.processes.ended().keys() & COMPONENTS.keys():
            self.kill(component)

    def stop(self) -> None:
        """End the components and everything that they started."""
        self.processes.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _begin(self, component: str) -> None:
        command = [sys.executable, "-m", "airflow", component, *COMPONENTS[component]]
        self.processes.start(component, command, env=self.env, cwd=self.home)

    def _migrate(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        self.logs.mkdir(exist_ok=True)
        log = self.logs / "migrate.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise AirflowError(f"Airflow's database could not be made; see {log}")
        database = sqlite3.connect(self.home / "airflow.db")
        try:
            database.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not block the one writer
        finally:
            database.close()

    def _missing(self, dag_ids: Iterable[str]) -> list[str]:
        health = self.api.get("monitor/health")
        missing = [
            name
            for name in ("metadatabase", "scheduler", "triggerer", "dag_processor")
            if health[name]["status"] != "healthy"
        ]
        if missing:
            return missing
        if errors := self.api.get("importErrors")["import_errors"]:
            raise AirflowError(f"A DAG file does not import: {errors[0]['filename']}\n{errors[0]['stack_trace']}")
        known = {dag["dag_id"] for dag in self.api.get("dags")["dags"]}
        return [f"DAG {dag_id}" for dag_id in dag_ids if dag_id not in known]

    def _settings(self, port: int, log_ports: list[int]) -> dict[str, str]:
        loopback = "127.0.0.1,localhost"
        proxied = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), loopback)))
        return {
            "AIRFLOW_HOME": str(self.home),
            "NO_PROXY": proxied,
            "no_proxy": proxied,
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags_folder),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.home / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(64),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "task-logs"),
            "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(self.home / "logs" / "dag-files"),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            # Only what is asked for runs: no run of a schedule begins beside it.
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        }


class AirflowApi:
    """The little of Airflow's REST API that is needed here.

    Args:
        url: Where Airflow is.
        user: A user of the simple auth manager.
        password: Theirs.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url
        self._login = {"username": user, "password": password}
        self._session = requests.Session()
        self._session.trust_env = False  # loopback: no proxy, no .netrc

    def get(self, path: str, **params: Any) -> Any:
        """GET a path below ``/api/v2``.

        Args:
            path: The path, without a leading slash.
            params: The query.

        Returns:
            The answer's JSON.

        Raises:
            AirflowError: Airflow refuses.
            requests.RequestException: It cannot be reached.
        """
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST to a path below ``/api/v2``; as ``get``.

        Args:
            path: The path, without a leading slash.
            body: The request's JSON.

        Returns:
            The answer's JSON.

        Raises:
            AirflowError: Airflow refuses.
            requests.RequestException: It cannot be reached.
        """
        return self._call("POST", path, json=dict(body))

    def add_connection(
        self,
        conn_id: str,
        *,
        conn_type: str,
        host: str = "",
        port: int | None = None,
        login: str = "",
        password: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Create a connection, as an administrator would in the UI.

        Args:
            conn_id: Its name.
            conn_type: Its type.
            host: Host or base URL.
            port: Port, where it is no part of a URL.
            login: User.
            password: Password or token.
            extra: Its further fields.
        """
        body = {
            "connection_id": conn_id,
            "conn_type": conn_type,
            "host": host,
            "port": port,
            "login": login,
            "password": password,
            "extra": json.dumps(extra or {}),
        }
        self._call("POST", "connections", json=body)

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Mapping[str, Any] | None = None
    ) -> str:
        """Un-pause a DAG and start a run.

        Args:
            dag_id: The DAG.
            logical_date: The run's date, with time zone.
            conf: The run's values for the DAG's params.

        Returns:
            The run's id.
        """
        self._call("PATCH", f"dags/{dag_id}", params={"update_mask": "is_paused"}, json={"is_paused": False})
        date = logical_date.isoformat() if logical_date else None
        run = self._call("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": date, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """The state of a run: ``queued``, ``running``, ``success`` or ``failed``."""
        return str(self.get(f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All task instances of a run, as the API describes them."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def _call(self, method: str, path: str, **request: Any) -> Any:
        answer = self._session.request(method, f"{self._url}/api/v2/{path}", timeout=30, **request)
        if answer.status_code == requests.codes.unauthorized:
            self._authenticate()
            answer = self._session.request(method, f"{self._url}/api/v2/{path}", timeout=30, **request)
        if not answer.ok:
            raise AirflowError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def _authenticate(self) -> None:
        answer = self._session.post(f"{self._url}/auth/token", json=self._login, timeout=30)
        if not answer.ok:
            raise AirflowError(f"Airflow refuses the login: {answer.status_code} {answer.text[:500]}")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("AIRFLOW_")}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports
