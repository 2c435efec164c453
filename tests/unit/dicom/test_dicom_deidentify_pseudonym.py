"""Pseudonyms: the same for the same, never the same for two, and a way back that needs no key."""

import json
import re
import uuid
from datetime import date

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydicom.uid import UID

from qure_provider.dicom.model import Identity
from qure_provider.dicom.pseudonym import (
    IdentityMap,
    Patient,
    PseudonymCollisionError,
    Pseudonymizer,
    ensure_distinct,
    shifted,
)

ONE, OTHER = Pseudonymizer(b"1" * 32), Pseudonymizer(b"2" * 32)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PATIENTS = st.builds(Patient, TEXT, TEXT, TEXT)
UIDS = st.from_regex(r"[1-9][0-9]{0,9}(\.(0|[1-9][0-9]{0,9})){1,5}", fullmatch=True)
IDENTITIES = st.builds(Identity, UIDS, TEXT, TEXT, TEXT, st.just("19700101"), st.sampled_from(["F", "M", ""]), TEXT)


@given(st.one_of(UIDS, TEXT))
def test_a_uid_is_valid_and_always_the_same(original):
    new = ONE.uid(original)
    assert UID(new).is_valid
    assert len(new) <= 64
    made = uuid.UUID(int=int(new.removeprefix("2.25.")))
    assert (made.version, made.variant) == (8, uuid.RFC_4122)
    assert new == Pseudonymizer(b"1" * 32).uid(original) != OTHER.uid(original)


@given(st.sets(UIDS, min_size=2, max_size=30))
def test_two_uids_never_become_one(originals):
    assert len({ONE.uid(original) for original in originals}) == len(originals)


@given(PATIENTS)
def test_a_patient_s_codes_are_words_of_their_own_that_fit_every_vr(patient):
    codes = [ONE.patient_id(patient), ONE.patient_name(patient), ONE.accession("A1", patient)]
    assert len(set(codes)) == 3
    for code in codes:
        assert re.fullmatch(r"[PNA][A-Z2-7]{15}", code)  # SH has 16 characters
    assert codes == [ONE.patient_id(patient), ONE.patient_name(patient), ONE.accession("A1", patient)]


@given(PATIENTS, PATIENTS)
def test_two_patients_share_nothing(one, other):
    assume(one != other)
    assert ONE.patient_id(one) != ONE.patient_id(other)
    assert ONE.patient_name(one) != ONE.patient_name(other)
    assert ONE.accession("A1", one) != ONE.accession("A1", other)


def test_parts_of_an_identity_cannot_be_moved_from_one_to_the_other():
    assert ONE.patient_id(Patient("12", "3")) != ONE.patient_id(Patient("1", "23"))
    assert ONE.patient_id(Patient("1:2", "")) != ONE.patient_id(Patient("1", "2"))
    assert ONE.accession("1", Patient("2")) != ONE.accession("12", Patient(""))


def test_two_patients_of_one_name_differ_and_one_over_several_nights_does_not():
    name, study = "SIMULATED^SAME", "1.2.3"
    first = ONE.identity(Identity(study, "SIM-1", patient_name=name))
    namesake = ONE.identity(Identity("1.2.4", "SIM-2", patient_name=name))
    later = ONE.identity(Identity("1.2.5", "SIM-1", patient_name="SIMULATED^CORRECTED"))
    assert (first.patient_id, first.patient_name) == (later.patient_id, later.patient_name)
    assert first.study_instance_uid != later.study_instance_uid
    assert not {first.patient_id, first.patient_name} & {namesake.patient_id, namesake.patient_name}


def test_padding_is_no_other_patient_and_another_issuer_is():
    def code(patient_id, issuer=""):
        return ONE.identity(Identity("1.2.3", patient_id, issuer)).patient_id

    assert code("SIM-1 ") == code("SIM-1") == code(" SIM-1")
    assert len({code("SIM-1"), code("SIM-1", "A"), code("SIM-1", "B"), code("SIM-01")}) == 4


def test_studies_without_a_patient_id_are_not_taken_for_one_patient():
    one, other = (ONE.identity(Identity(uid, "", patient_name="SIMULATED")) for uid in ("1.2.3", "1.2.4"))
    assert one.patient_id != other.patient_id
    assert one.patient_name != other.patient_name
    assert one.patient_id


def test_no_accession_number_stays_none():
    assert ONE.accession(" ", Patient("1")) == ""


@given(PATIENTS, st.dates(date(1900, 1, 1), date(2100, 1, 1)))
def test_dates_move_into_the_past_and_back_again(patient, day):
    days = ONE.date_shift(patient)
    assert -3652 < days < -365
    assert days == ONE.date_shift(patient)
    moved = shifted(day.strftime("%Y%m%d"), days)
    assert shifted(moved, -days) == day.strftime("%Y%m%d")


@given(PATIENTS, st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(0, 10_000))
def test_intervals_between_a_patient_s_dates_are_kept(patient, day, apart):
    days = ONE.date_shift(patient)
    later = shifted(day.strftime("%Y%m%d"), apart)
    assert shifted(shifted(day.strftime("%Y%m%d"), days), apart) == shifted(later, days)


def test_patients_are_not_all_moved_by_the_same_days():
    assert len({ONE.date_shift(Patient(str(number))) for number in range(200)}) > 150


@pytest.mark.parametrize("value", ["", "2024", "20240231", "2024-05-01", "SIMULATE", "²0240501", "00010101"])
def test_what_is_no_date_is_not_moved(value):
    with pytest.raises(ValueError, match=r"date|month|day"):
        shifted(value, -700)


def test_the_old_form_of_a_date_is_understood():
    assert shifted("2024.05.01", -1) == "20240430"


def test_a_short_key_is_refused_and_no_key_is_shown():
    with pytest.raises(ValueError, match="31 bytes"):
        Pseudonymizer(b"x" * 31)
    key = b"do not show this to anybody at all"
    assert "do not show" not in repr(Pseudonymizer(key)) + str(vars(type(Pseudonymizer(key))))
    assert Pseudonymizer(key).key_id not in (ONE.key_id, OTHER.key_id)


def map_of(pseudonymizer, source, *uids, dates=()):
    shift = pseudonymizer.date_shift(Patient.of(source))
    return IdentityMap(
        source,
        pseudonymizer.identity(source),
        {pseudonymizer.uid(uid): uid for uid in uids},
        {shifted(day, shift): day for day in dates},
        pseudonymizer.key_id,
    )


@given(IDENTITIES, st.lists(UIDS, max_size=5))
def test_a_map_survives_the_way_through_json(source, uids):
    made = map_of(ONE, source, *uids, dates=["20240501"])
    assert IdentityMap.from_mapping(json.loads(json.dumps(made.to_mapping()))) == made


def test_a_changed_key_makes_other_pseudonyms_and_leaves_the_old_way_back():
    source = Identity("1.2.3", "SIM-1", patient_name="SIMULATED")
    stored = json.dumps(map_of(ONE, source, "1.2.3", "1.2.3.4").to_mapping())
    old, new = IdentityMap.from_mapping(json.loads(stored)), map_of(OTHER, source, "1.2.3", "1.2.3.4")
    assert not old.uids.keys() & new.uids.keys()
    assert old.pseudonym.patient_id != new.pseudonym.patient_id
    assert old.key_id != new.key_id
    assert old.uids[ONE.uid("1.2.3.4")] == "1.2.3.4"
    assert (old.pseudonym.patient_id, old.source.patient_id) == (ONE.patient_id(Patient("SIM-1")), "SIM-1")
    ensure_distinct(old.uids, new.uids)  # the same source under two keys is no collision


def test_a_lost_map_is_made_again_from_key_and_source():
    source = Identity("1.2.3", "SIM-1")
    assert map_of(ONE, source, "1.2.3") == map_of(Pseudonymizer(b"1" * 32), source, "1.2.3")


def test_maps_of_one_study_are_put_together_and_others_are_not():
    source = Identity("1.2.3", "SIM-1")
    whole = map_of(ONE, source, "1.2.3", "1.2.3.4", dates=["20240501"]).joined([map_of(ONE, source, "1.2.3.5")])
    assert set(whole.uids.values()) == {"1.2.3", "1.2.3.4", "1.2.3.5"}
    assert set(whole.dates.values()) == {"20240501"}
    corrected = map_of(ONE, Identity("1.2.3", "SIM-1", patient_name="SIMULATED"), "1.2.3.6")
    assert whole.joined([corrected]).source == source
    others = [Identity("1.2.3", "SIM-2"), Identity("1.2.4", "SIM-1"), Identity("1.2.3", "SIM-1", "", "A1")]
    for other in (map_of(OTHER, source), *(map_of(ONE, each) for each in others)):
        with pytest.raises(ValueError, match="cannot be put together"):
            whole.joined([other])


def test_a_collision_is_noticed():
    ensure_distinct({"P1": "SIM-1"}, {"P1": "SIM-1", "P2": "SIM-2"})
    with pytest.raises(PseudonymCollisionError, match="Change the key") as error:
        ensure_distinct({"P1": "SIM-1"}, {"P1": "SIM-2"})
    assert "SIM" not in str(error.value)
    source = Identity("1.2.3", "SIM-1")
    one = IdentityMap(source, source, {"2.25.1": "1.2.3.4"})
    with pytest.raises(PseudonymCollisionError):
        one.joined([IdentityMap(source, source, {"2.25.1": "1.2.3.5"})])


def test_a_map_shows_no_patient_in_logs():
    source = Identity("1.2.3", "SIM-1", patient_name="SIMULATED^SECRET")
    assert "SIM" not in repr(map_of(ONE, source, "1.2.3"))
