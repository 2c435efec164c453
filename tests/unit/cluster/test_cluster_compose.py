"""The reader of Compose files: what it understands, and that it refuses the rest."""

import pytest

from cluster.compose import ComposeError, Condition, load_project


@pytest.fixture
def load(tmp_path):
    def read(text, profiles=(), **variables):
        path = tmp_path / "docker-compose.yaml"
        path.write_text(text)
        return load_project(path, variables, profiles=profiles)

    return read


def service(body=""):
    """A file with one service of some keys."""
    return f"services:\n  one:\n    image: redis:7\n{body}"


def text_of(load, text, **variables):
    project = load(service(f"    command: ['{text}']\n"), **variables)
    return project.services["one"].command[0]


class TestVariables:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("${SET}", "value"),
            ("a${SET}b${SET}", "avaluebvalue"),
            ("${SET:-default}", "value"),
            ("${UNSET:-default}", "default"),
            ("${EMPTY:-default}", "default"),
            ("${UNSET:-}", ""),
            ("${SET:?tell why}", "value"),
            ("$$SET", "$SET"),
            ("$$$$", "$$"),
            ("$${SET}", "${SET}"),
        ],
    )
    def test_they_become_their_values(self, load, text, value):
        assert text_of(load, text, SET="value", EMPTY="") == value

    def test_a_value_is_not_read_again(self, load):
        assert text_of(load, "${SET}", SET="${OTHER} $$ $") == "${OTHER} $$ $"

    @pytest.mark.parametrize("variables", [{}, {"SECRET": ""}])
    def test_one_that_must_be_set_is_named_with_the_reason(self, load, variables):
        with pytest.raises(ComposeError, match=r"SECRET is not set in \.env: make one up"):
            text_of(load, "${SECRET:?make one up}", **variables)

    def test_one_without_default_must_be_set(self, load):
        with pytest.raises(ComposeError, match="UNSET is not set"):
            text_of(load, "${UNSET}")

    @pytest.mark.parametrize("text", ["$", "$(date)", "costs 5$", "${", "${1A}", "${A-b}", "${A:-${B}}"])
    def test_a_dollar_that_is_none_is_refused(self, load, text):
        with pytest.raises(ComposeError, match=r"\$"):
            text_of(load, text, A="a", B="b")


class TestWhatIsNotUnderstoodIsRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (service("    privileged: true\n"), "service one: not understood here: privileged"),
            (service() + "networks:\n  back: {}\n", "the file: not understood here: networks"),
            (service("    environment: [A=b]\n"), "service one, environment: must be a mapping"),
            (service("    environment: {A: true}\n"), "service one, A: must be a text"),
            (service("    volumes: ['gone:/data']\n"), "the volume 'gone' is not declared"),
            (service("    volumes: ['./data']\n"), "is no source:/target"),
            (service("    volumes: ['./data:/data:z']\n"), "is no source:/target"),
            (service("    configs: [{source: gone, target: /x}]\n"), "the config 'gone' is not declared"),
            (service("    healthcheck: {test: [NONE]}\n"), "neither CMD"),
            (service("    healthcheck: {test: [CMD, x], interval: 30}\n"), "30 is no duration"),
            (service("    depends_on: {two: {condition: service_started}}\n"), "depends on two, which is no service"),
            (service("    depends_on: {one: {condition: service_ready}}\n"), "no condition that is known"),
            (service("    depends_on: {one: {condition: service_started}}\n"), "in a circle: one -> one"),
            ("services:\n  one: {command: x}\n", "service one: has no image"),
        ],
    )
    def test_with_what_is_wrong(self, load, text, message):
        with pytest.raises(ComposeError, match=message):
            load(text)

    def test_waiting_for_the_health_of_a_service_without_a_check(self, load):
        with pytest.raises(ComposeError, match="waits for the health of one, which has no check"):
            load(service() + "  two:\n    image: x\n    depends_on: {one: {condition: service_healthy}}\n")


class TestWhatIsRead:
    def test_services_come_after_what_they_depend_on(self, load):
        project = load(
            """
            services:
              last: {image: x, depends_on: {middle: {condition: service_started}}}
              middle: {image: x, depends_on: {first: {condition: service_completed_successfully}}}
              first: {image: x}
            """
        )
        assert list(project.services) == ["first", "middle", "last"]
        assert project.services["middle"].depends_on == {"first": Condition.COMPLETED}

    def test_a_service_of_a_profile_runs_with_it_only(self, load):
        text = service() + "  two: {image: x, profiles: [try, more]}\n"
        assert set(load(text).services) == {"one"}
        assert set(load(text, profiles=["try"]).services) == {"one", "two"}

    def test_a_health_check(self, load):
        project = load(
            service("    healthcheck: {test: [CMD-SHELL, 'a && b'], interval: 1m30s, timeout: 2h, start_period: 5s}\n")
        )
        health = project.services["one"].health
        assert health.command == ("/bin/sh", "-c", "a && b")
        assert (health.interval, health.timeout, health.start_period) == (90, 7200, 5)
        assert (health.start_interval, health.retries) == (5, 3)

    def test_merged_parts_and_extensions(self, load):
        project = load(
            """
            x-base: &base {image: x, environment: &env {A: "1"}, profiles: [try]}
            services:
              one: {<<: *base, environment: {<<: *env, B: 2}, profiles: []}
            """
        )
        assert project.services["one"].environment == {"A": "1", "B": "2"}

    def test_commands_volumes_and_configs(self, load):
        project = load(
            """
            services:
              one:
                image: x
                command: sh -c 'a b'
                expose: ["80", 81]
                volumes: ["kept:/data", "./dags:/dags:ro"]
                configs: [{source: made, target: /etc/made}]
            volumes: {kept: }
            configs: {made: {content: "of ${THIS}"}}
            """,
            THIS="that",
        )
        one = project.services["one"]
        assert one.command == ("sh", "-c", "a b")
        assert one.expose == (80, 81)
        assert [(mount.source, mount.target, mount.is_volume) for mount in one.mounts] == [
            ("kept", "/data", True),
            ("./dags", "/dags", False),
        ]
        assert one.configs == {"/etc/made": "of that"}
