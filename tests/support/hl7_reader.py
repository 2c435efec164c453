r"""A reader of HL7 v2 for tests, written by the standard's rules and independent of the provider and its libraries.

It divides at delimiters first and unescapes last, so that whatever was escaped wrongly shows as a segment, field or
component too many.
"""

import re

_ESCAPES = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", ".br": "\n"}
_CODECS = {"": "ascii", "ASCII": "ascii", "UNICODE UTF-8": "utf-8"}


class Message:
    """A message: ``message["OBR"][18]`` is a field, ``message.all("OBX")`` are segments.

    Args:
        raw: The bytes, without MLLP's frame.
    """

    def __init__(self, raw):
        self.raw = raw
        header = raw.split(b"\r", 1)[0].split(b"|")
        name = header[17].decode("ascii") if len(header) > 17 else ""
        self.codec = _CODECS.get(name) or f"iso{name.replace('/', '-')}"
        text = raw.decode(self.codec)
        if not text.endswith("\r"):
            raise ValueError("the last segment has no end")
        self.segments = [Segment(line, self.codec) for line in text[:-1].split("\r")]
        if self.segments[0].name != "MSH" or self.segments[0][2] != r"^~\&":
            raise ValueError("no MSH with the usual delimiters")

    def __getitem__(self, name):
        (segment,) = self.all(name)
        return segment

    def all(self, name):
        return [segment for segment in self.segments if segment.name == name]

    @property
    def names(self):
        return [segment.name for segment in self.segments]

    @property
    def control_id(self):
        return self["MSH"][10]


class Segment:
    """A segment; ``segment[5]`` is its fifth field as it stands, ``segment.values(5)`` what that says."""

    def __init__(self, line, codec):
        self.line = line
        self._codec = codec
        self.name, *self._fields = line.split("|")
        if self.name == "MSH":
            self._fields.insert(0, "|")

    def __getitem__(self, number):
        return self._fields[number - 1] if number <= len(self._fields) else ""

    def values(self, number):
        """The components of a field without repetitions, unescaped."""
        if "~" in self[number]:
            raise ValueError("a repetition too many")
        return [self.unescape(component) for component in self[number].split("^")]

    def value(self, number):
        """A field that has one component."""
        (value,) = self.values(number)
        return value

    def all_values(self):
        return [self.value(number) if "^" not in self[number] else None for number in range(1, len(self._fields) + 1)]

    def repetitions(self, number):
        return [[self.unescape(part) for part in field.split("^")] for field in self[number].split("~")]

    def unescape(self, text):
        if "&" in text:
            raise ValueError("a subcomponent too many")

        def meant(match):
            code = match[1]
            if code.startswith("X"):
                return bytes.fromhex(code[1:]).decode(self._codec)
            return _ESCAPES[code]

        parts = re.split(r"(\\[^\\]*\\)", text)
        if any("\\" in part for part in parts[::2]):
            raise ValueError("an escape without its end")
        return "".join(re.sub(r"\\([^\\]*)\\", meant, part) if at % 2 else part for at, part in enumerate(parts))
