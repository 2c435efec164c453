"""Airflow's own API server with the plugin in it."""

import http.client
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from plugin_kit import NightStore, token_of


@pytest.fixture
def store(tmp_path, monkeypatch):
    root = tmp_path / "store"
    root.mkdir()
    monkeypatch.setenv("AIRFLOW__QURE__STORE_ROOT", str(root))
    return NightStore(root)


@pytest.fixture
def night(store):
    """One night of one result; its address."""
    store.add_ledger()
    store.add_result()
    return store.add_run()


@pytest.fixture(scope="session")
def api_server():
    """The port of Airflow's API server, as ``airflow api-server`` builds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "plugin_kit.Accounts")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of these tests alone" * 4)
        patch.setenv("AIRFLOW__API__SECRET_KEY", "another one")
        import airflow.models
        import uvicorn
        from airflow import settings
        from airflow.api_fastapi.app import create_app
        from airflow.models.base import Base

        airflow.models.import_all_models()
        Base.metadata.create_all(settings.engine)
        server = uvicorn.Server(uvicorn.Config(create_app("core"), log_level="warning"))
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def get(api_server):
    """Ask for an address exactly as it is given: no client tidies the path."""

    def get(address, user="radiology", *, method="GET", token=None, **headers):
        if user:
            headers["Cookie"] = f"_token={token or token_of(user)}"
        connection = http.client.HTTPConnection("127.0.0.1", api_server, timeout=20)
        try:
            connection.request(method, address, headers=headers)
            answer = connection.getresponse()
            return SimpleNamespace(status=answer.status, body=answer.read(), headers=answer.headers)
        finally:
            connection.close()

    return get
