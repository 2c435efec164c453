"""What reached the service is searched for whose it is."""

from types import SimpleNamespace

import pydicom
import pytest
from support.deidentified import KEY, a_deidentifier, as_sent

from demo import checks
from demo.export import make_export
from qure_provider.dicom.model import Fate
from qure_provider.dicom.pseudonym import Pseudonymizer

known_as = Pseudonymizer(KEY).uid


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("export"), night="2026-01-15", studies=1, small=True)


def service(folder, contents, facts):
    """A service that received some files and was asked to compute every CT series."""
    received = []
    for number, content in enumerate(contents):
        path = folder / str(number)
        path.write_bytes(content)
        uid = str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        received.append(SimpleNamespace(sop_instance_uid=uid, path=str(path)))
    computed = [
        SimpleNamespace(uid=known_as(each.uid), status=200) for each in facts.resources if each.route.value == "ct"
    ]
    return SimpleNamespace(received=lambda: received, requests=lambda kind: computed)


def selected(facts):
    return [(facts.folder / file.path).read_bytes() for file in facts.files if file.fate is Fate.SELECTED]


def test_a_night_that_tells_nothing_is_as_it_should_be(facts, tmp_path):
    deidentifier = a_deidentifier()
    sent = [as_sent(content, deidentifier)[0] for content in selected(facts)]
    assert list(checks.check_deidentified_requests(facts, service(tmp_path, sent, facts), known_as)) == []


def test_a_file_that_left_as_it_is_is_found(facts, tmp_path):
    deidentifier = a_deidentifier()
    first, *rest = selected(facts)
    sent = [first, *(as_sent(content, deidentifier)[0] for content in rest)]
    problems = list(checks.check_deidentified_requests(facts, service(tmp_path, sent, facts), known_as))
    assert "1 files that reached the service tell whose they are" in problems
    assert any("never reached the service" in problem for problem in problems)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_name_left_in_a_comment_is_found(facts, tmp_path, encoding):
    deidentifier = a_deidentifier()
    sources = selected(facts)
    sent = [as_sent(content, deidentifier)[0] for content in sources]
    (tmp_path / "source").write_bytes(sources[0])
    name = str(pydicom.dcmread(tmp_path / "source").PatientName).replace("^", " ")
    sent[0] += name.encode(encoding)
    (problem,) = checks.check_deidentified_requests(facts, service(tmp_path, sent, facts), known_as)
    assert problem == "1 files that reached the service tell whose they are"
