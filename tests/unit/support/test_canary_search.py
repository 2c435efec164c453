"""The search of the canary test finds what it is there to find."""

import base64
import hashlib
import html
import json
import sqlite3
import zlib
from urllib.parse import quote

import pytest
from support.canary import DIGITS, Mark, in_database, in_folder, in_logs, keep_all_that_is_written, search


def found(content, *marks):
    return {kind for kind, places in search([("here", content)], marks).items() if places}


HIDDEN = {
    "plain": lambda text: text.encode(),
    "lower case": lambda text: text.lower().encode(),
    "cut short": lambda text: text[:-3].encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end first": lambda text: text.encode("utf-16-be"),
    "hexadecimal": lambda text: text.encode().hex().encode(),
    "hexadecimal, upper case": lambda text: text.encode().hex().upper().encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 of more, by one": lambda text: base64.b64encode(f"x{text}yz".encode()),
    "base64 of more, by two": lambda text: base64.b64encode(f"ab{text}c".encode()),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(f"\xff{text}".encode()),
    "Basic": lambda text: b"Basic " + base64.b64encode(f"user:{text}".encode()),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": text})).encode(),
    "percent": lambda text: quote(f"a b/{text}").encode(),
    "all percent": lambda text: "".join(f"%{ord(letter):02X}" for letter in text).encode(),
    "HTML": lambda text: html.escape(f"<{text}>").encode(),
    "repr of bytes": lambda text: repr(f"\0{text}".encode()).encode(),
    "md5": lambda text: hashlib.md5(text.encode()).hexdigest().encode(),
    "sha256, ten digits of it": lambda text: b"ref=" + hashlib.sha256(text.encode()).hexdigest()[:10].encode(),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("mark", [Mark("letters"), Mark("digits", alphabet=DIGITS, length=12)], ids=lambda m: m.kind)
def test_a_canary_is_found_in_every_obvious_form(mark, hide):
    other = Mark("other")
    other.new()
    assert found(b"before " + hide(mark.new("PRE^", "^POST")) + b" after", mark, other) == {mark.kind}


def test_what_holds_no_mark_is_found_when_it_is_named():
    mark = Mark("patient")
    born = mark.add("18830729")

    assert found(f"born {born}".encode(), mark) == {"patient"}
    assert not found(b"born 18830730", mark)


def test_nothing_is_found_where_nothing_is():
    mark = Mark("patient")
    mark.new()
    assert not found(bytes(range(256)) * 1000 + hashlib.sha256(b"another").hexdigest().encode(), mark)


def test_all_that_a_database_ever_held_is_searched(tmp_path):
    mark, path = Mark("patient"), tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE xcom (key TEXT PRIMARY KEY, value BLOB)")
    keep_all_that_is_written(path)
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO xcom VALUES ('a', ?)", (mark.new(),))
        database.execute("UPDATE xcom SET value = ?", (zlib.compress(b"x" * 99 + mark.new().encode()),))
        database.execute("UPDATE xcom SET value = 'harmless'")
        database.execute("DELETE FROM xcom")

    values = [(name, content) for name, content in in_database("db", path) if mark.text.encode() in content]

    assert [name for name, _ in values] == ["db:xcom.value"] * 2


def test_what_is_encrypted_is_searched_too(tmp_path):
    mark, path = Mark("secret"), tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (value TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (mark.new()[::-1],))

    unlocked = in_database("db", path, unlock=lambda raw: raw[::-1])

    assert set(search(unlocked, [mark])["secret"]) == {"db:t.value (decrypted)"}


def test_lines_for_debugging_are_told_apart(tmp_path):
    mark = Mark("typed")
    text = f'Z [debug    ] {mark.new()}\n{{"level":"debug","event":"{mark.new()}"}}\nZ [info     ] harmless\n'
    (tmp_path / "a.log").write_text(text)
    assert set(search(in_logs("log", tmp_path), [mark])["typed"]) == {"log.debug:a.log"}

    (tmp_path / "a.log").write_text(f"{text}Traceback\n  {mark.new()}\n")
    assert set(search(in_logs("log", tmp_path), [mark])["typed"]) == {"log:a.log", "log.debug:a.log"}


def test_file_names_are_searched_like_files(tmp_path):
    mark = Mark("patient")
    (tmp_path / f"{mark.new()}.log").write_bytes(b"")

    assert search(in_folder("logs", tmp_path), [mark])["patient"]
