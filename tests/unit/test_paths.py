"""Nothing that a header, an answer or a name says becomes a path, or a word of a command, unchecked."""

import ast
import os
from pathlib import Path, PurePosixPath

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

import qure_provider
from qure_provider.api.files import read_files
from qure_provider.api.model import Route
from qure_provider.dicom.scan import scan
from qure_provider.hooks.connection import UploadDialect
from qure_provider.hooks.multipart import MultipartBody, OutgoingFileError
from qure_provider.hooks.outgoing import FileVersion, OutgoingFile
from qure_provider.nights import safe_name
from qure_provider.operators.fetching import _free_name
from qure_provider.operators.plan import run_folder
from qure_provider.store import result_folder

HOSTILE = [
    "../../etc/cron.d/x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "~root",
    "$(reboot)",
    "a\0b",
    "a\nb",
    "-rf",
]
TEXTS = st.text(max_size=30) | st.sampled_from(HOSTILE)


def is_one_component(name):
    return PurePosixPath(name).parts == (name,) and name not in {".", ".."} and name.isprintable()


@given(st.dictionaries(TEXTS, st.just("https://files.example/x"), max_size=5))
def test_R8_no_kind_of_file_becomes_a_path(files):
    kinds, _ = read_files(files)
    taken = {"result", "answer"}

    names = [_free_name(kind, taken) for kind in kinds]

    assert len(set(names)) == len(names)
    assert all(is_one_component(name) and not name.startswith(("-", ".")) for name in names)


@given(TEXTS)
def test_R8_no_name_of_a_night_or_run_becomes_a_path(name):
    assert is_one_component(safe_name(name))
    assert len(PurePosixPath(run_folder(name, "dag", name, "")).parts) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("uid", [*HOSTILE, "1.2/../../x", "1.2 ", "1..2", "1.2.$(id)", "1" * 65])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_R8_no_uid_of_a_header_becomes_a_path(tmp_path, keyword, uid):
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    setattr(dataset[keyword], "_value", pydicom.uid.UID(uid))  # noqa: B010
    if keyword == "SOPInstanceUID":
        dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(uid)
    dataset.save_as(tmp_path / "x")

    for series in scan(tmp_path).series:
        for instance in series.instances:
            uids = series.identity.study_instance_uid, series.series_instance_uid, instance.sop_instance_uid
            folder = PurePosixPath(result_folder(*uids, Route.XRAY, 1))
            assert folder.parts == ("studies", *uids, "r1")
            assert all(set(each) <= set("0123456789.") and ".." not in each for each in uids)


def test_R8_a_link_that_takes_a_files_place_is_not_followed(tmp_path):
    secret, path = tmp_path / "secret", tmp_path / "export" / "image"
    path.parent.mkdir()
    for file in (secret, path):
        file.write_bytes(b"secret")
        os.utime(file, (1000, 1000))
    outgoing = OutgoingFile("1.2.3", "1.2", str(path), 6, version=FileVersion(6, 1000.0))
    assert b"secret" in b"".join(MultipartBody([outgoing], UploadDialect.FORM_DATA))

    path.unlink()
    path.symlink_to(secret)

    with pytest.raises(OutgoingFileError):
        list(MultipartBody([outgoing], UploadDialect.FORM_DATA))


FORBIDDEN = {"subprocess", "pty", "pickle", "marshal", "shelve", "os.system", "os.popen", "eval", "exec"}


def called_or_imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield getattr(node, "module", None) or ""
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_is_handed_to_a_shell_or_to_an_unpickler():
    for path in Path(qure_provider.__file__).parent.rglob("*.py"):
        found = FORBIDDEN & set(called_or_imported(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found, f"{path.name}: {found}"
