"""A YAML or JSON text as plain data, with a position for every value.

A spec is typed by hand many times a day, so its errors must point at a line and column; and specs are shared between
people, so reading one must be safe whatever it holds. Both come from building the data ourselves out of the parser's
*events* (never PyYAML's constructors, which know YAML 1.1's dates, octals, `yes` and `3e-4` as text, and which fall
over on deep nesting). Scalars follow the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `3e-4` is
a number, `0777` is 777, `no` and `2024-02-30` are text. Tags, merge keys, several documents and repeated keys are
refused; size, depth and the number of values (aliases counted as often as they are used) are bounded.

JSON is read through the same events, since inside brackets YAML 1.2 reads it as JSON does; what JSON allows and YAML
does not (tabs, some raw characters) is rewritten first, and what Python's reader allows and JSON does not is refused.

What is wrong with a spec, said in one line that points at a line and column; several mistakes in one line each.
"""

import copy
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_MESSAGE, MAX_LINES = 400, 10


ASSIGNED = "--set "
"""How the place of a value begins that did not come from the document's own text."""


class SpecError(ValueError):
    """A spec that cannot be used. `str(error)` is one line, `file:line:col: what, what is allowed, what to try`.

    Whatever the spec holds, the line is short and printable: control characters and such are shown as escapes.
    A spec with several mistakes is one error, that of the first: its line ends with how many more there are, and
    `lines` has one for each of them, ten at most.
    """

    def __init__(self, where: str, message: str, others: Sequence["SpecError"] = ()) -> None:
        self.where, line = _printable(where), _printable(message)
        self.message = line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "..."
        self.others = tuple(others)
        line = f"{self.where}: {self.message}" if where else self.message
        super().__init__(line + (f" ({len(others)} more)" if others else ""))

    @property
    def lines(self) -> list[str]:
        """What to print, in order."""
        return [str(error) for error in (self, *self.others)][:MAX_LINES]

    @classmethod
    def of(cls, errors: Sequence["SpecError"]) -> "SpecError":
        """One error of these, none of which has others yet."""
        first, *others = errors
        return cls(first.where, first.message, others)

    def noting(self, note: str) -> "SpecError":
        """The same, with a note behind its place."""
        return SpecError(f"{self.where} {note}"[:200], self.message, self.others)


def speaks_of(message: str, key: str, origin: str) -> bool:
    """Whether a message has the name or the value of what `--set path=value` assigned, as words of their own."""
    value = origin.partition("=")[2].strip("'\"")
    return any(word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in (key, value))


def _printable(text: str) -> str:
    """One line without characters that could disturb a terminal."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


MAX_CHARACTERS, MAX_BYTES = 256 * 1024, 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 50_000
MAX_DIGITS = 400

Key = str | int
Location = tuple[Key, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# Legal raw in a JSON string, but not a YAML character, or a line break to YAML.
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
_JSON_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) YAML 1.2 scalar: None, bool, int, float or, for anything else, the text itself.

    Raises ValueError for a number of more than 400 characters and for a whole number beyond 64 bits.
    """
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return match[1] is not None
    whole_number, number = _INT.fullmatch(text), _FLOAT.fullmatch(text)
    if len(text) > MAX_DIGITS and (whole_number or number):
        raise ValueError(f"a number of {len(text)} characters; at most {MAX_DIGITS} are read.")
    if whole_number:
        whole = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if not -(2**63) <= whole < 2**63:
            raise ValueError("a whole number beyond 64 bits; write a large quantity as 1e21.")
        return whole
    if number:
        return float(text)
    if match := _SPECIAL.fullmatch(text):
        return float(f"{match[1] or ''}{match[2] or match[3]}")
    return text


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and where each part of it was written.

    `values` and `keys` map a location, such as `("model", "layers")`, to `file:line:column` of value and key.
    """

    data: Any
    name: str
    values: dict[Location, str] = field(default_factory=dict)
    keys: dict[Location, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Document":
        """Read a file, `.json` as JSON and anything else as YAML. SpecError also if it cannot be read."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)  # not by the file's size, which a device does not have
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise SpecError(str(path), f"cannot be read: {getattr(error, 'strerror', error)}.") from None
        if len(content) > MAX_BYTES:
            raise SpecError(f"{path}:1:1", f"more than {MAX_BYTES} bytes; a spec is far shorter.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            place = _place(str(path), content.decode("latin-1"), error.start)
            message = f"byte 0x{content[error.start]:02x} is not UTF-8; save the spec as UTF-8 text."
            raise SpecError(place, message) from None
        return cls.parse(text, str(path), as_json=path.suffix == ".json")

    @classmethod
    def parse(cls, text: str, name: str, *, as_json: bool = False) -> "Document":
        """Build a document from text; `name` stands for the file in error messages. Raises SpecError."""
        text = text.removeprefix("\ufeff")
        if len(text) > MAX_CHARACTERS:
            raise SpecError(f"{name}:1:1", f"{len(text)} characters; a spec has at most {MAX_CHARACTERS}.")
        if as_json:
            text = _check_json(text, name)
        document = cls(None, name)
        try:
            _Builder(document).build(text)
        except yaml.reader.ReaderError as error:
            message = f"the character U+{ord(text[error.position]):04X} is not allowed; save the spec as UTF-8 text."
            raise SpecError(_place(name, text, error.position), message) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            raise SpecError(place, f"not valid YAML: {error.problem or error.context}.") from None
        return document

    @classmethod
    def recorded(cls, text: str, name: str) -> "Document":
        """A spec that a program wrote, as `parse` reads it and five times as fast: thousands are read for a report.

        libyaml's parser does it where there is one. What it refuses `parse` reads, or refuses in its own words.
        """
        loader: Any = getattr(yaml, "CSafeLoader", None)
        if loader is not None and len(text) <= MAX_CHARACTERS:
            document = cls(None, name)
            with suppress(SpecError, yaml.YAMLError, ValueError):
                parser, builder = loader(text), _Builder(document)
                while parser.check_event():
                    builder.take(parser.get_event())
                return document
        return cls.parse(text, name)

    @classmethod
    def of(cls, data: Any, name: str) -> "Document":
        """Plain data that was written nowhere; `name` is the place of all of it."""
        return cls(data, name, {(): name})

    def part(self, key: str) -> "Document":
        """What lies under a key, with the places it has here."""
        values = {location[1:]: place for location, place in self.values.items() if location[:1] == (key,)}
        keys = {location[1:]: place for location, place in self.keys.items() if location[:1] == (key,)}
        return Document(self.data[key], self.name, values, keys)

    def error(self, location: Location, message: str) -> SpecError:
        """What is wrong at a location, with its place; for what shows when the spec has been read."""
        return SpecError(self.where(location, message=message), message)

    def where(self, location: Location, *, key: bool = False, message: str = "") -> str:
        """Position of the deepest part of `location` that was written, its key rather than its value if `key`.

        message: what is wrong there. Where it speaks of something below that was assigned from outside (`--set`), by
        its value or its name, that is the position.
        """
        for below, origin in reversed(self.values.items()):
            known = len(below) > len(location) > 0 and below[: len(location)] == location
            if known and message and origin.startswith(ASSIGNED) and speaks_of(message, str(below[-1]), origin):
                return origin
        if key and location in self.keys:
            return self.keys[location]
        for length in range(len(location), -1, -1):
            if location[:length] in self.values:
                return self.values[location[:length]]
        return f"{self.name}:1:1"


@dataclass
class _Frame:
    """A mapping or list under construction; `key` waits for its value."""

    container: Any
    location: Location
    anchor: str | None
    key: str | None = None


class _Builder:
    """Turns parser events into plain data, without recursion, writing positions into the document as it goes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.anchors: dict[str, Any] = {}
        self.stack: list[_Frame] = []
        self.count, self.finished = 0, False

    def build(self, text: str) -> None:
        """Consume all events; leaves `document.data` set. An empty text gives None."""
        parser: Any = yaml.SafeLoader(text)  # only its parser is used, never its constructors
        try:
            while parser.check_event():
                self.take(parser.get_event())
        except SpecError:
            raise
        except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF", which PyYAML hands to chr() unchecked
            place = f"{self.document.name}:{parser.line + 1}:{parser.column + 1}"
            raise SpecError(place, "not valid YAML: an escape that is not a character.") from None

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent) and self.finished:
            self.refuse(event, "a second document starts here; a spec is one document.")
        elif isinstance(event, yaml.DocumentEndEvent):
            self.finished = True
        elif isinstance(event, yaml.CollectionStartEvent):
            self.check(event, depth=1)
            container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
            self.stack.append(_Frame(container, self.place(event), event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self.stack.pop()
            self.put(frame.container, frame.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self.scalar(event)

    def alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            self.refuse(event, f"*{event.anchor} is inside its own anchor, or has none.")
        value = self.anchors[event.anchor]
        size, depth = _extent(value)
        self.count += size - 1
        self.check(event, depth)
        self.place(event)
        # A copy: a later change of one place must not reach the other.
        self.put(copy.deepcopy(value), None)

    def scalar(self, event: Any) -> None:
        self.check(event)
        frame = self.stack[-1] if self.stack else None
        is_key = frame is not None and isinstance(frame.container, dict) and frame.key is None
        try:
            text = _join_surrogates(event.value)
            value = scalar(text) if event.implicit[0] and not is_key else text
        except ValueError as error:
            self.refuse(event, str(error))
        if frame is not None and is_key:
            self.key(frame, text, event)
        else:
            self.place(event)
            self.put(value, event.anchor)

    def key(self, frame: _Frame, text: str, event: Any) -> None:
        if text in frame.container:
            self.refuse(event, f"Duplicate key '{text[:60]}'. Keep one of them.")
        if text == "<<":
            self.refuse(event, "merge keys (<<) are not part of YAML 1.2; write the keys out.")
        frame.key = text
        self.document.keys[(*frame.location, text)] = self.mark(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = text

    def place(self, event: Any) -> Location:
        location: Location = ()
        for frame in self.stack[-1:]:
            key = frame.key if isinstance(frame.container, dict) else len(frame.container)
            if key is None:
                self.refuse(event, "a key must be plain text.")
            location = (*frame.location, key)
        self.document.values[location] = self.mark(event)
        return location

    def put(self, value: Any, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = value
        if not self.stack:
            self.document.data = value
            return
        frame = self.stack[-1]
        if frame.key is not None:
            frame.container[frame.key] = value
            frame.key = None
        else:
            frame.container.append(value)

    def check(self, event: Any, depth: int = 0) -> None:
        """Count a value that brings `depth` levels of its own."""
        if (tag := getattr(event, "tag", None)) is not None:
            self.refuse(event, f"the tag {tag[:60]} is not used in specs; remove it.")
        self.count += 1
        if self.count > MAX_VALUES:
            self.refuse(event, f"more than {MAX_VALUES} values (aliases count each time they are used).")
        if len(self.stack) + depth > MAX_DEPTH:
            self.refuse(event, f"nested more than {MAX_DEPTH} deep.")

    def mark(self, event: Any) -> str:
        return f"{self.document.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def refuse(self, event: Any, message: str) -> NoReturn:
        raise SpecError(self.mark(event), message)


def _extent(value: Any) -> tuple[int, int]:
    """Number of values in a tree, and how deep it nests; both are bounded already, so the walk is short."""
    if not isinstance(value, dict | list):
        return 1, 0
    below = [_extent(item) for item in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)


def _join_surrogates(text: str) -> str:
    """JSON writes characters beyond the BMP as two \\u escapes; YAML gives them back as two lone surrogates."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half of a surrogate pair is not a character; write both halves, or the character.") from None


def _place(name: str, text: str, position: int) -> str:
    return f"{name}:{text.count(chr(10), 0, position) + 1}:{position - text.rfind(chr(10), 0, position)}"


def _check_json(text: str, name: str) -> str:
    """Check that `text` is JSON; return it with tabs (between tokens) and odd raw characters as YAML takes them."""
    try:
        json.loads(text, parse_int=len, parse_float=len)
    except json.JSONDecodeError as error:
        raise SpecError(f"{name}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}.") from None
    except RecursionError:
        pass  # the builder refuses the depth, and knows the place
    for match in _JSON_CONSTANT.finditer(text):
        if match[1]:
            raise SpecError(_place(name, text, match.start()), f"{match[1]} is not JSON; a spec has finite numbers.")
    return _RAW_IN_JSON.sub(lambda raw: f"\\u{ord(raw[0]):04x}", text.replace("\t", " "))
