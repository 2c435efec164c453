"""SECURITY.md promises nothing that no test holds."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TABLE = TEXT.partition("## Threats")[2].partition("\n## ")[0]
THREATS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| ")][2:]


def names_of_tests():
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8")))
    return found


def test_every_threat_has_a_cure_and_tests_that_exist():
    known = names_of_tests()
    assert len(THREATS) >= 12
    for what, who, cure, tests in THREATS:
        assert what and who and cure  # noqa: PT018
        named = set(re.findall(r"`(\w+)`", tests))
        assert named, what
        assert named <= known, named - known


def test_it_can_be_followed_as_it_stands():
    assert not re.search(r"@|TODO|<[a-z]|example\.", TEXT)
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
