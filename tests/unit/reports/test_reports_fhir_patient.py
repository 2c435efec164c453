import pytest
from support.fhir_reports import IDENTITY, SYSTEM

from qure_provider.dicom.model import Identity
from qure_provider.reports.fhir_patient import carries, contradiction

RECORD = {
    "resourceType": "Patient",
    "id": "17",
    "identifier": [{"system": SYSTEM, "value": "SIM-17"}],
    "birthDate": "1970-01-31",
    "gender": "female",
}


def test_the_same_person_is_not_contradicted():
    assert contradiction(RECORD, IDENTITY) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"birthDate": "1970-01-31"},
        {"birthDate": "1970-01"},
        {"birthDate": "1970"},
        {"birthDate": None},
        {"gender": "unknown"},
        {"gender": "other"},
        {"gender": None},
        {"active": True},
        {"link": [{"type": "seealso"}]},
        {"link": "damaged"},
    ],
)
def test_what_is_less_exact_or_unknown_is_no_contradiction(more):
    assert contradiction({**RECORD, **more}, IDENTITY) == ""


def test_what_the_source_does_not_say_is_no_contradiction():
    assert contradiction(RECORD, Identity("2.25.1", "SIM-17")) == ""
    assert contradiction(RECORD, Identity("2.25.1", "SIM-17", birth_date="1970.01.31", sex="O")) == ""


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"birthDate": "1970-01-30"}, "birth date"),
        ({"birthDate": "1971"}, "birth date"),
        ({"gender": "male"}, "sex"),
        ({"active": False}, "no longer in use"),
        ({"link": [{"type": "replaced-by"}]}, "replaced"),
    ],
)
def test_a_contradiction_is_named_without_its_values(more, named):
    said = contradiction({**RECORD, **more}, IDENTITY)

    assert named in said
    assert "19" not in said


@pytest.mark.parametrize(
    ("resource", "found"),
    [
        (RECORD, True),
        ({"identifier": [{"system": SYSTEM, "value": "sim-17"}]}, False),
        ({"identifier": [{"system": "urn:oid:9", "value": "SIM-17"}]}, False),
        ({"identifier": [{"value": "SIM-17"}]}, False),
        ({"identifier": {"system": SYSTEM, "value": "SIM-17"}}, False),
        ({"identifier": ["damaged"]}, False),
        ({}, False),
    ],
)
def test_only_exactly_this_identifier_counts(resource, found):
    assert carries(resource, SYSTEM, "SIM-17") is found
