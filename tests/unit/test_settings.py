import json
import re
import string
from pathlib import Path

import pytest
from airflow.sdk import AsyncCallback
from airflow.sdk.exceptions import AirflowConfigException

import qure_provider
from qure_provider import settings
from qure_provider.get_provider_info import get_provider_info

OPTIONS = get_provider_info()["config"]["qure"]["options"]


@pytest.fixture
def option(monkeypatch):
    """Set an option of the section."""
    return lambda name, value: monkeypatch.setenv(f"AIRFLOW__QURE__{name.upper()}", value)


class TestLeavingTheBuildingIsADecision:
    def test_there_is_no_default_and_the_error_explains_what_to_decide(self):
        with pytest.raises(settings.IdentityPolicyError) as failure:
            settings.identity_policy()
        text = str(failure.value)
        assert "nothing was sent" in text
        assert "[qure] identity_policy" in text
        assert "identified" in text
        assert "names included" in text

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_nothing_on_the_task_leaves_it_to_the_configuration(self, option, nothing):
        option("identity_policy", "identified")
        assert settings.identity_policy(nothing) is settings.IdentityPolicy.IDENTIFIED

    def test_the_task_has_the_last_word(self, option):
        option("identity_policy", "no such thing")
        assert settings.identity_policy("identified") is settings.IdentityPolicy.IDENTIFIED

    @pytest.mark.parametrize("wrong", ["none", "IDENTIFIED", "yes", "identify"])
    def test_a_policy_that_does_not_exist_is_no_policy(self, option, wrong):
        option("identity_policy", wrong)
        with pytest.raises(settings.IdentityPolicyError, match="is no identity policy"):
            settings.identity_policy()


class TestWhatIsDocumentedIsWhatIsRead:
    def test_every_option_read_is_documented_and_every_documented_one_is_read(self):
        read = set()
        for path in Path(qure_provider.__file__).parent.rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            read |= set(re.findall(r'_text\("(\w+)"\)', source))
            read |= set(re.findall(r'conf\.get\w*\(\s*(?:SECTION|"qure"),\s*"(\w+)"', source))
        assert read == set(OPTIONS)

    def test_the_numbers_used_where_nothing_is_set_are_the_documented_ones(self):
        used = {
            "max_batches": settings.max_batches(),
            "max_files": settings.max_files(),
            "max_header_bytes": settings.max_header_bytes(),
            "first_poll_seconds": settings.first_poll_seconds(),
            "max_poll_seconds": settings.max_poll_seconds(),
            "settle_seconds": settings.settle_seconds(),
        }
        documented = {name for name, option in OPTIONS.items() if option["type"] in {"integer", "float"}}
        assert used == {name: float(OPTIONS[name]["default"]) for name in documented}

    def test_texts_are_empty_where_nothing_is_set(self):
        assert settings.export_root() == settings.ledger_conn_id() == ""

    def test_what_is_set_is_used(self, option):
        for name, value in {
            "max_batches": "7",
            "first_poll_seconds": "1.5",
            "max_poll_seconds": "9",
            "settle_seconds": "2",
            "store_root": " /var/lib/qure ",
            "export_root": "/exports",
            "ledger_conn_id": "qure_ledger",
            "timezone": "Asia/Kolkata",
        }.items():
            option(name, value)
        assert (settings.max_batches(), settings.first_poll_seconds()) == (7, 1.5)
        assert (settings.max_poll_seconds(), settings.settle_seconds()) == (9.0, 2.0)
        assert (settings.store_root(), settings.export_root()) == ("/var/lib/qure", "/exports")
        assert (settings.ledger_conn_id(), settings.timezone()) == ("qure_ledger", "Asia/Kolkata")


MAIL = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"


class TestWhomToTell:
    def test_nobody_where_nothing_is_set_and_of_urgent_results_alone(self):
        assert settings.notifiers() == settings.rules() == settings.page_findings() == []
        assert settings.page_on() == ["urgent"]
        assert settings.selection() == {}

    def test_notifiers_are_named_by_class_and_arguments(self, option):
        option("notifiers", json.dumps([{"path": MAIL, "kwargs": {"to": "duty@x.example"}}, {"path": MAIL}]))
        first, second = settings.notifiers()
        assert first == AsyncCallback(MAIL, kwargs={"to": "duty@x.example"})
        assert second.kwargs == {}

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ({"path": MAIL}, "must be a JSON list"),
            (["mail"], "must be a JSON list"),
            ([{"kwargs": {}}], "'path'"),
            ([{"path": MAIL, "to": "x"}], "'kwargs'"),
            ([{"path": "no.such.Notifier"}], "no.such.Notifier"),
            ([{"path": "json.dumps"}], "no notifier"),
        ],
    )
    def test_what_is_none_is_named(self, option, value, problem):
        option("notifiers", json.dumps(value))
        with pytest.raises(ValueError, match=problem) as failure:
            settings.notifiers()
        assert "[qure] notifiers" in str(failure.value)

    def test_what_is_no_json_is_named(self, option):
        option("notifiers", "mail")
        with pytest.raises(AirflowConfigException, match="notifiers"):
            settings.notifiers()

    def test_lists_are_divided_by_commas_since_a_meaning_has_blanks(self, option):
        option("page_on", "urgent, no finding of this product")
        option("page_findings", "pneumothorax,nodule")
        assert settings.page_on() == ["urgent", "no finding of this product"]
        assert settings.page_findings() == ["pneumothorax", "nodule"]


class TestTheNightsExport:
    @pytest.mark.parametrize(
        ("root", "export"),
        [("/exports", "/exports/{night}"), ("/exports/{night:YYYYMMDD}/out", "/exports/{night:YYYYMMDD}/out")],
    )
    def test_is_below_the_root_unless_the_root_names_the_night(self, option, root, export):
        option("export_root", root)
        assert settings.night_export() == export


class TestDefaults:
    def test_the_store_lies_beside_the_dags(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/opt/airflow/dags")
        assert settings.store_root() == "/opt/airflow/qure"

    def test_the_zone_is_airflows(self, monkeypatch):
        assert settings.timezone() == "UTC"
        monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_TIMEZONE", "Europe/Berlin")
        assert settings.timezone() == "Europe/Berlin"


class TestPseudonyms:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        settings._pseudonym_key.cache_clear()
        yield
        settings._pseudonym_key.cache_clear()

    def test_the_same_uid_has_the_same_short_name_which_does_not_show_it(self, option):
        option("pseudonym_key", "a key")
        name = settings.short_ref("1.2.840.113619.2.1")
        assert name == settings.short_ref("1.2.840.113619.2.1") != settings.short_ref("1.2.840.113619.2.2")
        assert len(name) == 10
        assert set(name) <= set(string.hexdigits)

    def test_another_installation_has_other_names(self, option):
        option("pseudonym_key", "a key")
        name = settings.short_ref("1.2.3")
        settings._pseudonym_key.cache_clear()
        option("pseudonym_key", "another")
        assert settings.short_ref("1.2.3") != name

    def test_without_a_key_of_its_own_airflows_is_taken(self, monkeypatch):
        names = []
        for key in ("first", "second", "first"):
            settings._pseudonym_key.cache_clear()
            monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", key)
            names.append(settings.short_ref("1.2.3"))
        assert names[0] == names[2] != names[1]

    def test_without_any_key_names_still_cannot_be_guessed(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
        name = settings.short_ref("1.2.3")
        settings._pseudonym_key.cache_clear()
        assert settings.short_ref("1.2.3") != name


class TestTheLinkToARun:
    def test_it_leads_to_the_run_in_the_ui(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/base/")
        link = settings.run_link("qure_nightly", "manual__2026-11-20T02:00:00+00:00")
        assert link == "https://airflow.example/base/dags/qure_nightly/runs/manual__2026-11-20T02%3A00%3A00%2B00%3A00"

    def test_there_is_none_where_nobody_said_where_the_ui_is(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "")
        assert settings.run_link("qure_nightly", "x") == ""
