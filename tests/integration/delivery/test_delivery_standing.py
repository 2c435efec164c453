"""A result that has another answer since it was delivered: receivers still have the old one, and somebody is told."""

import pytest
from pipeline_kit import Pager

from qure_provider import settings
from qure_provider.operators.standing import find_standing
from qure_provider.operators.summarize import NightUnresolvedError

ANOTHER = "UPDATE resources SET outcome = :outcome, usecase = :product WHERE uid = :uid"


def standing(night):
    with night.ledger() as ledger:
        return find_standing(ledger, ledger.rows_of_run(night.run_row(ledger).id))


@pytest.mark.parametrize(
    ("outcome", "product"), [("invalid", "qer"), ("unsupported", None), ("ready", "qct")], ids=lambda value: str(value)
)
def test_it_is_found_until_it_is_withdrawn(night, ris, outcome, product):
    night.onward("ris", night.to_folder)
    assert standing(night) == []
    night.sql(ANOTHER, outcome=outcome, product=product, uid=night.head_series)
    found = standing(night)
    assert {(item.row.uid, item.delivery.destination) for item in found} == {
        (night.head_series, "ris"),
        (night.head_series, night.to_folder),
    }
    with night.ledger() as ledger:
        taken_back = ledger.deliveries.not_withdrawn(study_instance_uid=night.head)
        ledger.deliveries.withdraw(taken_back, by="somebody", why="judged anew")
    assert standing(night) == []


def test_an_image_that_left_a_report_of_several_is_found_though_the_report_was_replaced(night, ris):
    night.onward("ris")
    night.sql(ANOTHER, outcome="invalid", product=None, uid=night.frontal)
    night.onward("ris")
    assert [item.row.uid for item in standing(night)] == [night.frontal]


def test_what_only_waits_for_its_newer_answer_is_not_meant(night, ris):
    night.onward("ris")
    night.sql("UPDATE resources SET outcome = NULL, settled_at = NULL WHERE uid = :uid", uid=night.head_series)
    assert standing(night) == []


def test_the_run_is_red_names_it_and_tells_people_once(night, ris):
    night.onward("ris")
    night.sql(ANOTHER, outcome="invalid", product="qer", uid=night.head_series)
    said = (
        f"Study {settings.short_ref(night.head)}, resource {settings.short_ref(night.head_series)}: the newest answer "
        "is invalid, and ris still has the result of qer: withdraw it with 'airflow qure withdraw', or recompute."
    )
    for _ in range(2):
        with pytest.raises(NightUnresolvedError) as error:
            night.summarize(deliver_to="ris", notifiers=[Pager.callback("{{ alert.problem }}")])
        assert said in str(error.value)
    told = [message for _, message in Pager.told if "still has" in message]
    assert told == [said.partition(": ")[2].rstrip(".")]
