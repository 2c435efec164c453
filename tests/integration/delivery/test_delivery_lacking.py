"""A study of which an image has no result: its report says so, and never reads as "no finding"."""

import pytest

NO_RESULT = "UPDATE resources SET outcome = :outcome, settled_at = NULL WHERE uid = :uid"


def said(message):
    """The study's meaning and the notice of an HL7 message."""
    observations = [line.split("|") for line in message.raw.decode().split("\r") if line.startswith("OBX")]
    values = {fields[3].split("^")[0]: fields[5] for fields in observations}
    return values["AI-STUDY-MEANING"], values["AI-NOTICE"]


def of_the_chest(night, ris):
    """What was said last of the chest films."""
    return said([message for message in ris.messages if night.chest in message.raw.decode()][-1])


@pytest.mark.parametrize("outcome", ["timed out", "failed", "invalid"])
def test_it_is_unknown_until_the_rest_is_there(night, ris, outcome):
    night.sql(NO_RESULT, outcome=outcome, uid=night.frontal)
    night.onward("ris")
    meaning, notice = of_the_chest(night, ris)
    assert meaning == "unknown"
    assert "1 image of the study has no result" in notice

    night.sql(NO_RESULT, outcome="ready", uid=night.frontal)
    night.onward("ris")
    meaning, notice = of_the_chest(night, ris)
    assert meaning == "abnormal"
    assert "no result" not in notice


def test_an_abnormal_study_stays_abnormal_and_says_what_it_lacks(night, ris):
    night.sql(NO_RESULT, outcome="unsupported", uid=night.lateral)
    night.onward("ris")
    meaning, notice = of_the_chest(night, ris)
    assert meaning == "abnormal"
    assert "1 image of the study has no result" in notice


def test_an_image_of_another_product_is_no_lack(night, ris):
    night.sql("UPDATE resources SET usecase = 'qmsk' WHERE uid = :uid", uid=night.frontal)
    night.edit_result(night.rows()[night.frontal].store_path, usecase="qmsk")
    night.onward("ris")
    chest = [said(message) for message in ris.messages if night.chest in message.raw.decode()]
    assert sorted(meaning for meaning, _ in chest) == ["abnormal", "no finding of this product"]
    assert not any("no result" in notice for _, notice in chest)


def test_a_judgement_that_is_taken_back_does_not_leave_no_finding(night, ris):
    night.onward("ris")
    assert of_the_chest(night, ris)[0] == "abnormal"
    night.sql(NO_RESULT, outcome="invalid", uid=night.frontal)
    night.onward("ris")
    assert of_the_chest(night, ris)[0] == "unknown"


def test_a_rule_can_keep_a_report_back_that_lacks_a_result(night, ris):
    rule = {"when": {"outcome": ["timed out"]}, "send": [], "to": ["ris"]}
    night.sql(NO_RESULT, outcome="timed out", uid=night.frontal)
    night.onward("ris", rules=[rule])
    assert [message for message in ris.messages if night.chest in message.raw.decode()] == []
    night.sql(NO_RESULT, outcome="ready", uid=night.frontal)
    night.onward("ris", rules=[rule])
    assert of_the_chest(night, ris)[0] == "abnormal"
