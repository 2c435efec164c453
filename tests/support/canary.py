"""Strings that stand out, and a search that finds them again however they were written.

Every string of one kind holds the kind's mark, so that one search for the mark finds all of them, cut short or
embedded, in any of the forms that programs write text in. Digests cannot be searched so: they are compared whole.
"""

import base64
import hashlib
import json
import random
import re
import sqlite3
import string
import zlib
from collections import defaultdict
from contextlib import closing
from itertools import count
from pathlib import Path

LETTERS, DIGITS = string.ascii_uppercase.replace("O", ""), "123456789"
_DIGESTS = ("md5", "sha1", "sha256", "sha512")
_DIGEST_SHOWN = 10
"""How many hexadecimal digits of a digest are enough to know it by."""


class Mark:
    """What the strings of one kind have in common.

    Args:
        kind: Its name.
        alphabet: Of the mark; digits where the strings have to be numbers.
        length: Of the mark; long enough that chance does not make it.
        also: Other texts of this kind that hold no mark.
    """

    def __init__(self, kind, *, alphabet=LETTERS, length=9, also=()):
        self.kind = kind
        self.text = "".join(random.SystemRandom().choices(alphabet, k=length))
        self.made = []
        self._also = list(also)
        self._alphabet = alphabet
        self._numbers = count(1)

    def new(self, before="", after=""):
        """A string that nobody else made; of letters alone, or of digits alone, but for what is put around it."""
        number, ending = next(self._numbers), ""
        while number:
            number, digit = divmod(number, len(self._alphabet))
            ending += self._alphabet[digit]
        made = f"{before}{self.text}{ending}{after}"
        self.made.append(made)
        return made

    def add(self, text):
        """Take another text for one of this kind, though it holds no mark."""
        self._also.append(text)
        return text

    @property
    def forms(self):
        """What to look for, in lower case."""
        texts = {self.text, self.text.lower(), self.text.capitalize(), *self._also}
        return {form.lower() for text in texts for form in forms(text)}

    @property
    def digests(self):
        """The beginnings of all digests that have no key, in hexadecimal."""
        whole = {text.encode() for made in (*self.made, *self._also) for text in (made, made.lower(), made.upper())}
        return {hashlib.new(name, text).hexdigest()[:_DIGEST_SHOWN] for name in _DIGESTS for text in whole}


def forms(text):
    """How a text may be written: plain, in other encodings, in base64, in hexadecimal, escaped."""
    raw = text.encode()
    yield raw
    for encoding in ("latin-1", "utf-16-le", "utf-16-be", "utf-32-le"):
        yield text.encode(encoding, "replace")
    yield raw.hex().encode()
    yield b" ".join(f"{byte:02x}".encode() for byte in raw)
    yield "".join(f"\\x{byte:02x}" for byte in raw).encode()
    yield "".join(f"%{byte:02x}" for byte in raw).encode()
    yield "".join(f"\\u{ord(letter):04x}" for letter in text).encode()
    yield "".join(f"&#{ord(letter)};" for letter in text).encode()
    yield "".join(f"&#x{ord(letter):x};" for letter in text).encode()
    yield json.dumps(text)[1:-1].encode()
    for source in (raw, text.encode("utf-16-le")):
        for shift in range(3):
            # What the letters before and after have a part in is left out.
            encoded = base64.b64encode(b"\0" * shift + source)
            inner = encoded[(0, 2, 3)[shift] : len(encoded) - (4 if (shift + len(source)) % 3 else 0)]
            yield inner
            yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def search(places, marks):
    """Look for marks.

    Args:
        places: Pairs of a place's name and its content.
        marks: What to look for.

    Returns:
        Kind to the names of the places where it was found, each with what stands around the first find.
    """
    patterns = {mark.kind: re.compile(b"|".join(map(re.escape, sorted(mark.forms)))) for mark in marks}
    digests = {digest.encode(): mark.kind for mark in marks for digest in mark.digests}
    found = defaultdict(dict)
    for name, content in places:
        folded = content.lower()
        for kind, pattern in patterns.items():
            if name not in found[kind] and (match := pattern.search(folded)):
                found[kind][name] = content[max(0, match.start() - 60) : match.end() + 60]
        for run in re.finditer(rb"(?<![0-9a-f])[0-9a-f]{%d,128}" % _DIGEST_SHOWN, folded):
            if kind := digests.get(run.group()[:_DIGEST_SHOWN]):
                found[kind].setdefault(name, content[max(0, run.start() - 60) : run.end()])
    return found


def in_folder(label, folder):
    """Every file below a folder, and its path, which may tell as much as its content."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            where = path.relative_to(folder).as_posix()
            yield f"{label}:{where}", where.encode() + b"\n" + path.read_bytes()


_DEBUG = re.compile(rb'\[debug +\]|"level": ?"debug"')


def in_logs(label, folder):
    """Every log below a folder; lines of the level DEBUG as places of their own, ``<label>.debug``."""
    for name, content in in_folder(label, folder):
        lines = content.split(b"\n")
        yield name, b"\n".join(line for line in lines if not _DEBUG.search(line))
        yield name.replace(label, f"{label}.debug", 1), b"\n".join(line for line in lines if _DEBUG.search(line))


def keep_all_that_is_written(database):
    """Let a SQLite database keep every row that it ever held, beside its tables, in tables of its own."""
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        tables = [name for name in _tables(connection) if not name.startswith("sqlite_")]
        for table in tables:
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            named = ", ".join(f'"{column}"' for column in columns)
            new = ", ".join(f'NEW."{column}"' for column in columns)
            connection.execute(f'CREATE TABLE "ever_{table}" ({named})')
            for event in ("INSERT", "UPDATE"):
                connection.execute(
                    f'CREATE TRIGGER "ever_{table}_{event}" AFTER {event} ON "{table}" '
                    f'BEGIN INSERT INTO "ever_{table}" ({named}) VALUES ({new}); END'
                )
        connection.commit()


def in_database(label, database, unlock=lambda value: None):
    """Every value of a SQLite database, by table and column.

    Args:
        label: What the places' names begin with.
        database: Its file.
        unlock: Gives what an encrypted value holds, or None for one that is not encrypted.
    """
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        connection.text_factory = bytes
        names = [name.decode() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in names:
            rows = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    if value is None:
                        continue
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    where = f"{label}:{table.removeprefix('ever_')}.{column}"
                    yield where, raw
                    if (plain := unlock(raw)) is not None:
                        yield f"{where} (decrypted)", plain
                    if raw[:1] == b"\x78":
                        try:
                            yield where, zlib.decompress(raw)
                        except zlib.error:
                            continue


def _tables(connection):
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
