"""The repository's own docker-compose.yaml, .env.example and image."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from cluster.compose import ComposeError, load_project
from cluster.images import ImageError, check_programs, command_of, environment_of
from cluster.places import Places
from cluster.trial import OVERRIDES, make_variables

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker-compose.yaml"
TEXT = FILE.read_text(encoding="utf-8")
REQUIRED = sorted(set(re.findall(r"(?<!\$)\$\{(\w+):\?", TEXT)))
OPTIONAL = sorted(set(re.findall(r"(?<!\$)\$\{(\w+):-", TEXT)))
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
AIRFLOW = {
    "init",
    "api-server",
    "scheduler",
    "dag-processor",
    "worker-1",
    "worker-2",
    "triggerer-1",
    "triggerer-2",
}


@pytest.fixture
def variables(tmp_path):
    return make_variables(tmp_path / "exports")


@pytest.fixture
def project(variables):
    return load_project(FILE, variables, profiles=["try"])


@pytest.fixture
def places(project, tmp_path):
    return Places(project, tmp_path)


def test_it_fits_the_schema_of_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_everything_that_an_airflow_of_several_machines_needs(variables):
    assert set(load_project(FILE, variables).services) == {"postgres", "redis", *AIRFLOW}
    assert set(load_project(FILE, variables, profiles=["try"]).services) == {
        "postgres",
        "redis",
        "emulator",
        "orthanc",
        *AIRFLOW,
    }


def test_every_service_comes_back_and_says_how_it_is():
    for name, service in yaml.safe_load(TEXT)["services"].items():
        assert service["restart"] == ("on-failure" if name == "init" else "unless-stopped"), name
        assert ("healthcheck" in service) == (name != "init"), name  # it ends


class TestSecretsAndDecisions:
    def test_none_has_a_default(self):
        assert not [name for name in OPTIONAL if re.search("PASSWORD|SECRET|KEY|TOKEN|POLICY", name)]
        assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "FERNET_KEY", "JWT_SECRET", "QURE_IDENTITY_POLICY"} <= {
            *REQUIRED
        }

    @pytest.mark.parametrize("name", REQUIRED)
    @pytest.mark.parametrize("value", [None, ""])
    def test_each_must_be_given(self, variables, name, value):
        given = {**variables, name: value} if value is not None else {k: v for k, v in variables.items() if k != name}
        with pytest.raises(ComposeError, match=rf"{name} is not set in \.env: \w+"):
            load_project(FILE, given)

    def test_the_example_names_all_of_them_and_gives_no_value(self):
        assert dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE)) == dict.fromkeys(REQUIRED, "")

    def test_the_example_tells_of_everything_that_can_be_set(self):
        assert sorted({*re.findall(r"^# (\w+)=", EXAMPLE, re.MULTILINE)} - {"QURE_URL"}) == OPTIONAL

    def test_no_secret_is_another_one(self, project, variables):
        secrets = [variables[name] for name in REQUIRED if re.search("PASSWORD|SECRET|KEY|TOKEN", name)]
        assert len(set(secrets)) == len(secrets)
        environment = project.services["worker-1"].environment
        assert variables["POSTGRES_PASSWORD"] not in environment["AIRFLOW_CONN_QURE_LEDGER"]


def test_the_sizing_guide_names_the_defaults_as_they_are():
    guide = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"`([A-Z_]+)` \((\d+)\)", guide))
    slots = {"UPLOAD_SLOTS", "COLLECT_SLOTS", "DELIVER_SLOTS"}
    others = {"WORKER_CONCURRENCY", "MAX_ACTIVE_TASKS", "QURE_REQUESTS_PER_SECOND", "QURE_MAX_BATCHES"}
    assert others | slots == set(told)
    assert told.items() <= dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT)).items()
    redeliver = 1
    assert sum(int(told[name]) for name in slots) + redeliver < 2 * int(told["WORKER_CONCURRENCY"])


class TestThePartsFitEachOther:
    def test_every_queue_that_tasks_are_sent_to_has_two_workers(self, project):
        queues = {"default", *json.loads(project.services["scheduler"].environment["AIRFLOW__QURE__QUEUES"]).values()}
        for worker in ("worker-1", "worker-2"):
            words = shlex.split(project.services[worker].command[-1])
            assert set(words[words.index("--queues") + 1].split(",")) == queues

    def test_every_pool_that_tasks_wait_for_is_made(self, project):
        wanted = json.loads(project.services["scheduler"].environment["AIRFLOW__QURE__POOLS"])
        made = json.loads(project.services["init"].configs["/opt/airflow/pools.json"])
        assert set(made) == set(wanted.values())
        assert all(pool["slots"] > 0 and pool["include_deferred"] is False for pool in made.values())
        assert made["qure_upload"]["slots"] < 2 * 8  # resumed tasks always find a worker's slot

    def test_the_connections_are_read_as_they_are_meant(self, project, variables):
        environment = project.services["worker-1"].environment
        connection = json.loads(environment["AIRFLOW_CONN_QURE_DEFAULT"])
        assert (connection["host"], connection["password"]) == (variables["QURE_URL"], variables["QURE_TOKEN"])
        assert connection["extra"] == {
            "source": variables["QURE_SOURCE"],
            "triggerers": len([name for name in project.services if name.startswith("triggerer")]),
            "allow_plain_http": False,
            "requests_per_second": 10,
            "parallel_uploads": 4,
            "max_request_bytes": int(variables["QURE_MAX_REQUEST_BYTES"]),
        }

    def test_all_airflow_services_share_settings_store_and_logs(self, project):
        common = project.services["scheduler"].environment
        for name in AIRFLOW:
            service = project.services[name]
            assert common.items() <= service.environment.items(), name
            assert {"store", "logs"} <= {mount.source for mount in service.mounts}, name

    def test_one_setting_takes_the_store_to_s3(self, variables):
        services = load_project(FILE, {**variables, "QURE_STORE_ROOT": "s3://aws_default@bucket/qure"}).services
        assert services["worker-2"].environment["AIRFLOW__QURE__STORE_ROOT"] == "s3://aws_default@bucket/qure"
        assert load_project(FILE, variables).services["worker-2"].environment["AIRFLOW__QURE__STORE_ROOT"] in {
            mount.target for mount in services["worker-2"].mounts
        }


class TestTheImage:
    DOCKERFILE = yaml.safe_load(TEXT)["x-airflow"]["build"]["dockerfile_inline"]

    def test_every_extra_that_it_installs_is_one(self):
        (extras,) = re.findall(r"airflow-provider-qure\[([\w,]+)\]", self.DOCKERFILE)
        with (ROOT / "pyproject.toml").open("rb") as file:
            known = tomllib.load(file)["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= set(known)

    def test_everything_that_it_copies_is_there_and_nothing_else_is_sent(self):
        sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        copied = [
            word
            for line in re.findall(r"^COPY (?!--from)(.+)", self.DOCKERFILE, re.MULTILINE)
            for word in line.split()[:-1]
        ]
        assert sorted(set(copied)) == sorted(sent)
        assert all((ROOT / name).exists() for name in copied)
        assert not any(fnmatch(name, ".*") or name in {"build", "dist"} for name in sent)


class TestOnThisMachine:
    def test_no_address_or_path_of_a_container_is_left(self, project, places):
        left = re.compile(r"(?<![\w.-])(?:0\.0\.0\.0|/opt/airflow|/var/lib/(?:qure|postgresql|orthanc)|/exports)\b")
        names = "|".join(project.services)
        reached = re.compile(rf"@(?:{names})\b|//(?:{names})\b|(?<![\w.-])(?:{names}):\d")
        for service in project.services.values():
            health = service.health.command if service.health else ()
            texts = [*service.command, *service.environment.values(), *service.configs.values(), *health]
            for text in texts:
                put = places.text(service, text)
                assert not left.search(put.replace(str(places.root), "here")), (service.name, text)
                assert not reached.search(put), (service.name, text)

    def test_a_service_gets_nothing_of_the_callers_environment(self, project, places, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "1")
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
        worker = environment_of(project.services["worker-1"], places)
        assert "HTTPS_PROXY" not in worker
        assert worker["AIRFLOW__CORE__PARALLELISM"] == "64"
        assert worker["HOSTNAME"] == "worker-1"
        assert Path(worker["HOME"]).is_relative_to(places.root)

    def test_an_image_that_nothing_stands_for_is_refused(self, tmp_path):
        path = tmp_path / "docker-compose.yaml"
        path.write_text("services: {one: {image: 'nginx:1'}}")
        project = load_project(path, {})
        with pytest.raises(ImageError, match="nothing is known that stands for the image nginx:1"):
            command_of(project.services["one"], Places(project, tmp_path))

    def test_a_program_that_is_missing_is_named_with_its_package(self, monkeypatch):
        monkeypatch.setattr("cluster.images.PATH", "/nowhere")
        with pytest.raises(ImageError, match="redis-server, redis-cli not found: install the package redis-server"):
            check_programs(["airflow-provider-qure", "redis:7-bookworm"])

    def test_what_a_trial_changes_is_known_to_airflow_or_to_us(self, project):
        known = project.services["scheduler"].environment.keys()
        assert all(name in known or re.match("AIRFLOW__(SCHEDULER|TRIGGERER|QURE)__", name) for name in OVERRIDES)
