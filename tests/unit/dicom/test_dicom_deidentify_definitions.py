"""What is sent, judged by a program that is not ours."""

import re
import shutil
import subprocess

import pytest
from support.deidentified import REAL_FILES, a_deidentifier, as_sent

from qure_provider.dicom.profile import Profile
from qure_provider.dicom.refusal import DeidentifyError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dicom3tools"),
]

PROFILES = {
    "default": Profile(),
    "strict": Profile(retain_patient_characteristics=False, shift_dates=False),
    "device": Profile(retain_device_identity=True, keep=("StudyDescription", "SeriesDescription")),
}


def errors(path):
    """What is wrong with an object, whatever its UIDs are."""
    found = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=60)
    lines = (found.stdout + found.stderr).decode("latin-1").splitlines()
    return {re.sub(r"<[0-9.]+>", "<UID>", line) for line in lines if line.startswith("Error")}


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_is_wrong_with_what_is_sent_that_was_not_wrong_before(name, tmp_path):
    deidentifier, worse, sent_files = a_deidentifier(PROFILES[name]), {}, 0
    for path in REAL_FILES:
        try:
            sent, _ = as_sent(path.read_bytes(), deidentifier)
        except DeidentifyError:
            continue
        target = tmp_path / "sent.dcm"
        target.write_bytes(sent)
        sent_files += 1
        if new := errors(target) - errors(path):
            worse[path.name] = new
    assert worse == {}
    assert sent_files > 70
