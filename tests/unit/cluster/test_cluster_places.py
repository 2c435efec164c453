"""What stands for a container's names, ports and paths."""

import pytest

from cluster.compose import load_project
from cluster.places import Places

TEXT = """
services:
  db: {image: x, expose: [5432]}
  web:
    image: x
    expose: [80, 8080]
    working_dir: /opt/app
    volumes: ["kept:/opt/app/logs", "./dags:/opt/app/dags"]
    configs: [{source: made, target: /etc/made.json}]
  web-2: {image: x, expose: [80]}
volumes: {kept: }
configs: {made: {content: '{"listen": "0.0.0.0:80", "logs": "/opt/app/logs", "from": "db:5432"}'}}
"""


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "project" / "docker-compose.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return load_project(path, {})


@pytest.fixture
def places(project, tmp_path):
    return Places(project, tmp_path / "root")


@pytest.fixture
def put(project, places):
    return lambda text, service="web": places.text(project.services[service], text)


def test_a_service_is_reached_by_its_name_and_port(put, places):
    db = places.port("db", 5432)
    assert put("postgresql://user:word@db:5432/name") == f"postgresql://user:word@127.0.0.1:{db}/name"
    assert put("http://web-2:80/") == f"http://127.0.0.1:{places.port('web-2', 80)}/"


def test_a_service_listens_on_ports_of_its_own(put, places):
    own = places.port("web", 80)
    assert put("http://127.0.0.1:80/health") == f"http://127.0.0.1:{own}/health"
    assert put("80") == str(own)
    assert put("--bind=0.0.0.0") == "--bind=127.0.0.1"
    assert put("80", "db") == "80"
    ports = [places.port(*place) for place in (("db", 5432), ("web", 80), ("web", 8080), ("web-2", 80))]
    assert len(set(ports)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "db:54321",
        "mydb:5432",
        "my-db:5432",
        "db",
        "v80",
        "1.80",
        "180",
        "/opt/application",
        "/srv/opt/app",
        "10.0.0.0",
        "0.0.0.0.1",
    ],
)
def test_what_only_looks_like_it_is_left_alone(put, text):
    assert put(text) == text


def test_paths_become_folders_of_this_machine_the_most_exact_first(put, places, project):
    own = places.own(project.services["web"])
    assert put("/opt/app") == f"{own}/opt/app"
    assert put("/opt/app/plugins") == f"{own}/opt/app/plugins"
    assert put("file:///opt/app/logs/x") == f"file://{places.volume('kept')}/x"
    assert put("/opt/app/dags:/opt/app/logs") == f"{project.folder / 'dags'}:{places.volume('kept')}"


def test_what_was_put_in_is_not_looked_at_again(project, tmp_path):
    places = Places(project, tmp_path / "opt" / "app" / "80")
    kept = places.text(project.services["web"], "/opt/app/logs")
    assert kept == str(tmp_path / "opt" / "app" / "80" / "volumes" / "kept")


def test_configs_are_written_with_the_places_in_them(places, project):
    web = project.services["web"]
    places.prepare(web)
    written = places.path(web, "/etc/made.json")
    assert written.read_text() == (
        f'{{"listen": "127.0.0.1:{places.port("web", 80)}", "logs": "{places.volume("kept")}", '
        f'"from": "127.0.0.1:{places.port("db", 5432)}"}}'
    )
    assert written.stat().st_mode & 0o077 == 0
    assert places.volume("kept").is_dir()
