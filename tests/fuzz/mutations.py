"""Damage to bytes and to JSON, decided by a seed alone."""

import json
import struct

_BYTES = (
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"),
    *(b"\xe0\x7f\x10\x00", b"\x02\x00\x10\x00", b"SQ\0\0", b"UN\0\0", b"OB\0\0", b"UI", b"PN", b"DICM"),
    *(b"1.2.840.10008.1.2.1.99", b"\x1b$B", b"\\", b"^", b"=", b"\r", b"|", b"&", b"~", b"\x0b", b"\x1c\r"),
    *(b"{", b"]", b'"', b"\xc3", b"\xed\xa0\x80", b"%PDF-1.4", b"<html>", b"ISO_IR 192", b"../../", b"/etc/passwd"),
)
_VALUES = (
    *(None, True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\0", "\ud800"),
    *("Routine", "critical", "qxr", "1.2.3", "../../etc/passwd", "http://[", "http://127.0.0.1/SECRET", "a" * 5_000),
    *("|^~\\&\r\nOBX|1|FT|", "<script>", "\u202e\u2028", [], {}, [[]], [None], {"": ""}, [["a", "b"], ["a"]]),
)
_MANY = 20


def damaged(rng, content, others=()):
    """Bytes with one to eight things changed.

    Args:
        rng: Decides what.
        content: The bytes.
        others: What pieces are taken from.
    """
    content = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(content) + 1)
        match rng.randrange(9):
            case 0:
                patch = rng.choice(_BYTES)
                content[place : place + len(patch)] = patch
            case 1:
                content[place:place] = rng.choice(_BYTES) * rng.choice((1, 1, 1, 100))
            case 2:
                del content[place : place + rng.randint(1, 64)]
            case 3:
                del content[place:]
            case 4 if content:
                content[place % len(content)] ^= 1 << rng.randrange(8)
            case 5:
                content[place : place + 4] = struct.pack("<L", rng.choice((rng.randrange(2**32), 2**31, len(content))))
            case 6:
                content[place : place + 2] = struct.pack("<H", rng.randrange(2**16))
            case 7:
                length = rng.randint(1, 256)
                content[place:place] = content[place : place + length]
            case 8 if others:
                other = rng.choice(others)
                begin = rng.randrange(len(other) + 1)
                content[place:place] = other[begin : begin + rng.randint(1, 512)]
    return bytes(content)


def nudged(rng, content):
    """Bytes of the same length with one to three places written over: elements keep their places."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content))
        patch = rng.choice((*_BYTES, bytes([rng.randrange(256)])))[: len(content) - place]
        content[place : place + len(patch)] = patch
    return bytes(content)


def damaged_json(rng, content):
    """A JSON value with one to six things changed, still of lists, dicts and plain values."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(0, 6)):
        content = _changed(rng, content)
    return content


def written(rng, content):
    """It as bytes, at times damaged beyond JSON."""
    body = json.dumps(content, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        depth = rng.choice((500, 5_000, 200_000))
        body = b'{"result":' * depth if rng.random() < 0.5 else b"[" * depth + b"]" * depth
    return damaged(rng, body) if rng.random() < 0.2 else body


def _changed(rng, content):
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        match rng.randrange(8):
            case 0:
                return {name: value for name, value in content.items() if name != key}
            case 1:
                return {**content, rng.choice((key.upper(), key + " ", "", "a" * 1000)): content[key]}
            case _:
                return {**content, key: _changed(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.85:
        place = rng.randrange(len(content))
        match rng.randrange(8):
            case 0:
                return [*content[:place], *content[place + 1 :]]
            case 1:
                return content * rng.choice((2, 50)) if len(content) < _MANY else content
            case _:
                return [*content[:place], _changed(rng, content[place]), *content[place + 1 :]]
    if isinstance(content, str) and rng.random() < 0.5:
        place = rng.randrange(len(content) + 1)
        return content[:place] + rng.choice("\r\n\0|^~\\&<'\"%\u2028\ud83dé{") + content[place:]
    if rng.random() < 0.1:
        return [content] if rng.random() < 0.5 else {"a": content}
    return rng.choice(_VALUES)
