import pytest
from airflow.sdk import DAG

from qure_provider.api.model import Meaning
from qure_provider.delivery.rules import Case, RulesError, decide, destinations_of, rules_from
from qure_provider.task_groups.process_export import process_export


def case(product="qxr", meaning=Meaning.ABNORMAL, modalities=("DX",), stations=("ROOM-1",), findings=("nodule",)):
    return Case(product, meaning, frozenset(modalities), frozenset(stations), frozenset(findings))


def sent(rules, the_case=None, to="pacs", deliver_to=()):
    return decide(rules_from(deliver_to, rules), the_case or case(), to)


class TestDeciding:
    def test_without_rules_every_named_destination_gets_everything(self):
        assert sent([], deliver_to=["pacs", "ris"]) == ()

    def test_one_destination_may_be_named_without_a_list(self):
        assert destinations_of(rules_from("pacs", [])) == ("pacs",)

    def test_a_destination_that_no_rule_names_gets_nothing(self):
        assert sent([{"to": ["ris"]}]) is None

    def test_the_first_rule_that_applies_decides(self):
        rules = [
            {"when": {"product": ["qer"]}, "send": ["sc"], "to": ["pacs"]},
            {"when": {"product": ["qxr"]}, "send": ["report_sr"], "to": ["pacs"]},
            {"send": ["sc", "report_pdf"], "to": ["pacs"]},
        ]
        assert sent(rules) == ("report_sr",)
        assert sent(rules, case("qer")) == ("sc",)
        assert sent(rules, case("qmsk")) == ("sc", "report_pdf")

    def test_each_destination_is_decided_by_itself(self):
        rules = [{"send": ["sc"], "to": ["pacs"]}, {"to": ["pacs", "ris"]}]
        assert sent(rules) == ("sc",)
        assert sent(rules, to="ris") == ()

    def test_rules_stand_before_what_gets_everything(self):
        assert sent([{"when": {"meaning": ["abnormal"]}, "send": ["sc"], "to": ["pacs"]}], deliver_to=["pacs"]) == (
            "sc",
        )

    def test_an_empty_list_of_kinds_means_nothing(self):
        assert sent([{"send": [], "to": ["pacs"]}], deliver_to=["pacs"]) is None

    def test_kinds_left_out_mean_all(self):
        assert sent([{"to": ["pacs"]}]) == ()

    @pytest.mark.parametrize(
        ("when", "applies"),
        [
            ({}, True),
            ({"product": ["qxr"]}, True),
            ({"product": "qXR"}, True),
            ({"product": ["qct-lung"]}, False),
            ({"meaning": ["Abnormal"], "outcome": ["READY"]}, True),
            ({"product": ["qct", "qer"]}, False),
            ({"meaning": ["urgent", "abnormal"]}, True),
            ({"meaning": ["urgent"]}, False),
            ({"modality": ["dx"]}, True),
            ({"modality": ["CT"]}, False),
            ({"station": ["ROOM-1"]}, True),
            ({"station": ["ROOM-2"]}, False),
            ({"finding": ["pneumothorax", "nodule"]}, True),
            ({"finding": ["pneumothorax"]}, False),
            ({"outcome": ["ready"]}, True),
            ({"outcome": ["timed out", "invalid"]}, False),
            ({"product": ["qxr"], "modality": ["CT"]}, False),
            ({"product": []}, True),
        ],
    )
    def test_each_condition_in_whatever_case_must_apply(self, when, applies):
        assert (sent([{"when": when, "to": ["pacs"]}]) is not None) is applies

    def test_a_report_of_two_modalities_is_of_both(self):
        both = case(modalities=("CR", "DX"), stations=("ROOM-1", "ROOM-2"))
        assert sent([{"when": {"modality": ["DX"], "station": ["ROOM-2"]}, "to": ["pacs"]}], both) == ()


class TestWrongRules:
    @pytest.mark.parametrize(
        ("rule", "says"),
        [
            ("pacs", "Rule 1 must be an object with 'when', 'send' and 'to'"),
            ({"to": ["pacs"], "sends": ["sc"]}, "Rule 1 does not take 'sends'. It takes when, send, to."),
            (
                {"to": ["pacs"], "when": {"triage": ["urgent"]}},
                "Rule 1: 'when' does not take 'triage'. It takes finding, meaning, mod",
            ),
            ({"to": ["pacs"], "when": ["urgent"]}, "Rule 1: 'when' must be an object; it takes finding,"),
            (
                {"to": ["pacs"], "when": {"outcome": ["done"]}},
                "'outcome' does not take 'done'. It takes ready, pending",
            ),
            (
                {"to": ["pacs"], "when": {"meaning": ["critical"]}},
                "'meaning' does not take 'critical'. It takes urgent,",
            ),
            (
                {"to": ["pacs"], "when": {"product": ["qrx", "QER"]}},
                "'product' does not take 'qrx'. It takes qxr, qmsk, qer, qct.",
            ),
            ({"to": ["pacs"], "when": {"product": ["qctlung"]}}, "'product' does not take 'qctlung'"),
            (
                {"to": ["pacs"], "when": {"modality": ["CT ", "dx"]}},
                "'modality' does not take 'ct '. It takes cr, dx, ct",
            ),
            (
                {"to": ["pacs"], "send": ["sc", "report-sr"]},
                "'send' does not take 'report-sr'. It takes sc, sc_full_png",
            ),
            ({"to": ["pacs"], "send": ["original"]}, "'send' does not take 'original'. It takes sc"),
            ({"to": ["pacs"], "when": {"product": 3}}, "Rule 1, product must be a text or a list of texts"),
            ({"to": ["pacs"], "when": {"product": [""]}}, "Rule 1, product must be a text or a list of texts"),
            ({"to": ["pacs"], "send": [1]}, "Rule 1, send must be a text or a list of texts"),
            ({"to": []}, "Rule 1 names no destination in 'to'"),
            ({"send": ["sc"]}, "Rule 1 names no destination in 'to'"),
        ],
    )
    def test_it_is_said_what_is_wrong_with_which(self, rule, says):
        with pytest.raises(RulesError, match=says):
            rules_from([], [rule])

    def test_the_number_is_that_of_the_wrong_one(self):
        with pytest.raises(RulesError, match="Rule 2 "):
            rules_from([], [{"to": ["pacs"]}, {"to": []}])

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"rules": [{"to": []}]}, "Rule 1 names no destination"),
            ({"rules": {"to": ["pacs"]}}, "Rule 1 must be an object"),
            ({"deliver_to": [None]}, "deliver_to must be a text or a list of texts"),
        ],
    )
    def test_they_fail_when_the_dag_is_parsed(self, arguments, says):
        with DAG("wrong", schedule=None), pytest.raises(RulesError, match=says):
            process_export(export="/exports/{night}", **arguments)
