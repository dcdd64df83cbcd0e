"""Bad inputs out of good ones, by a seeded generator: every function takes a `Random` and bytes, and gives bytes.

`mutated` stacks one to three mutations: some know only bytes, the others know what the file should have been.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

LONG = 1_000_000  # characters in a very long line
DEEP = 20_000  # levels; Python's own limit is 1,000
STRANGE = (
    b"", b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"\r", b"\n",
    b"\r\n", b"\x1b[31m", b"\x1a", b"\x85", b'"', b'""', b"'", b"\\", b"\\u", b"\\ud800", b"\\u0000", b"{", b"}", b"[",
    b"]", b",", b":", b"=", b"#", b"```", b"~~~", b"\t", b"../../x", b"/dev/zero", b"::error::", b"%s%n", b"{0}",
    "\u2028".encode(), "\u202e".encode(), "\u0085".encode(), "\ufeff".encode(), "🙂".encode(),
)  # fmt: skip
NUMBERS = (
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf", b"1e999", b"-1e999", b"1e-999", b"-0", b"-1", b"0", b"1.5",
    b"9" * 5_000, b"0x" + b"f" * 5_000, b"1_000", b"18446744073709551616", b"-9223372036854775809", b"1e308", b"true",
    b"null", b'"7"', b"1979-05-27",
)  # fmt: skip
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e308, 1e-308, float("nan"), float("inf"), "",
    "x", "\x00", "\ud800", "../../x", "/dev/zero", "a\nb", "\x1b[2J", "::error::x", "x" * 100_000, [], [None], [[]],
    ["x"], [0], {}, {"x": 0}, {"": {}}, {"schema": "lorasize.plan/1"},
)  # fmt: skip
NAMES = (
    "", "x", "schema", "prompt", "completion", "text", "messages", "role", "content", "__class__", "a\nb", "k" * 5_000
)
SCHEMAS = (
    "lorasize.plan/1", "lorasize.plan/2", "lorasize.calibration/1", "lorasize.memorization/1", "lorasize.recall/1",
    "lorasize.check/1", "lorasize.config/1", "lorasize.plan/", "lorasize.plan/1.1", "", 1, None, "x" * 100_000, "a\nb",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7")


def truncate(random: Random, data: bytes) -> bytes:
    """A beginning, which ends anywhere, or just behind a mark that means something, or inside a character."""
    marks = [k + 1 for k, byte in enumerate(data) if byte in b'"{}[],:\n\\' or byte >= 0x80]
    return data[: random.choice(marks) if marks and random.random() < 0.5 else random.randint(0, len(data))]


def flip(random: Random, data: bytes) -> bytes:
    """One to eight bits changed."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def insert(random: Random, data: bytes) -> bytes:
    """Something strange put in."""
    at = random.randint(0, len(data))
    more = random.choice(STRANGE) if random.random() < 0.8 else random.randbytes(random.randint(1, 64))
    return data[:at] + more * random.choice((1, 1, 1, 2, 100)) + data[at:]


def delete(random: Random, data: bytes) -> bytes:
    """A piece taken out."""
    at = random.randint(0, len(data))
    return data[:at] + data[at + random.choice((1, 1, 2, 8, 100, 1000)) :]


def repeat(random: Random, data: bytes) -> bytes:
    """A piece said again, up to a thousand times."""
    at = random.randint(0, len(data))
    end = at + random.choice((1, 2, 8, 100))
    return data[:end] + data[at:end] * random.choice((1, 2, 10, 1000)) + data[end:]


def swap(random: Random, data: bytes) -> bytes:
    """Two halves changed over, or two lines."""
    lines = data.split(b"\n")
    if random.random() < 0.5 and len(lines) > 1:
        random.shuffle(lines)
        return b"\n".join(lines)
    at = random.randint(0, len(data))
    return data[at:] + data[:at]


def recode(random: Random, data: bytes) -> bytes:
    """The text in another encoding, or packed."""
    if random.random() < 0.1:
        return gzip.compress(data, mtime=0)
    return data.decode("utf-8", "replace").encode(random.choice(ENCODINGS), "replace")


def blank(random: Random, data: bytes) -> bytes:
    """Next to nothing: empty, white space, a byte order mark, one kind of byte."""
    return random.choice((b"", b" ", b"\n" * 1000, b"\r", b"\xef\xbb\xbf", b"\x00" * 512, b"\xff" * 512, b"{}", b"[]"))


def lengthen(random: Random, data: bytes) -> bytes:
    """A line of a million characters, or a million lines."""
    at = random.randint(0, len(data))
    return data[:at] + random.choice((b"x", b" ", b"\n", b'"', b"\\", b",", b"[", b"a ", b"`", b"1")) * LONG + data[at:]


def renumber(random: Random, data: bytes) -> bytes:
    """A number written in a way that no number should be."""
    digits = [k for k, byte in enumerate(data) if byte in b"0123456789"]
    if not digits:
        return insert(random, data)
    start = end = random.choice(digits)
    while end < len(data) and data[end] in b"0123456789.eE+-":
        end += 1
    return data[:start] + random.choice(NUMBERS) + data[end:]


def nest(random: Random, data: bytes) -> bytes:
    """Brackets within brackets, closed or not, in place of a value or anywhere."""
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[[", b"]]"), (b"{a=", b"}")))
    middle = opening * DEEP + random.choice((b"0", b"")) + closing * random.choice((DEEP, DEEP, 0, 1))
    colons = [k + 1 for k, byte in enumerate(data) if byte in b":=,["]
    at = random.choice(colons) if colons else 0
    return data[:at] + middle + data[random.choice((at, at + 1, len(data))) :]


def restructure(random: Random, data: bytes) -> bytes:
    """One place of a JSON document changed: another type, a key missing, doubled, renamed or more."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return flip(random, data)
    text = json.dumps(_elsewhere(random, document), allow_nan=True)
    if random.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")


def _elsewhere(random: Random, value: Any) -> Any:
    """The value with a change at a random place in it."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        action = random.random()
        if action < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.25:
            return {**value, random.choice(NAMES): random.choice(WRONG)}
        if action < 0.3:
            return {(random.choice(NAMES) if k == key else k): v for k, v in value.items()}
        if key == "schema":
            return {**value, key: random.choice(SCHEMAS)}
        return {**value, key: _elsewhere(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        action = random.random()
        if action < 0.15:
            return value[:at] + value[at + 1 :]
        if action < 0.3:
            return value[:at] + value[at:] * 2
        return [*value[:at], _elsewhere(random, value[at]), *value[at + 1 :]]
    return random.choice(WRONG)


def restructure_line(random: Random, data: bytes) -> bytes:
    """One line of JSONL changed so."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = restructure(random, lines[at]) if lines[at] else json.dumps(random.choice(WRONG)).encode()
    return random.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"")).join(lines)


def quote(random: Random, data: bytes) -> bytes:
    """Quotes, delimiters and line breaks where they hurt in a table."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    piece = random.choice((
        b'"', b'""', b'"""', b'","', b'"\n"', b'"\r', b'x"y', b' "a"', b'"a" ', b"\r", b",", b"\t", b";" * 5, b'"a"b',
        b'"' * 999, b'"x' + b"\n" * 999, b"," * 999, b'"\x00"', b"=cmd()", b'\\"',
    ))  # fmt: skip
    column = random.randint(0, len(lines[at]))
    lines[at] = lines[at][:column] + piece + lines[at][column:]
    if random.random() < 0.1:
        lines[0] = lines[0] + b"," + lines[0].split(b",")[0]  # a column twice
    return b"\n".join(lines)


def reset(random: Random, data: bytes) -> bytes:
    """A key of a TOML file given another value, or another key or table."""
    value = random.choice((
        b"1", b"-1", b"0.5", b"nan", b"inf", b'""', b'"x"', b"true", b"[]", b"{}", b"{limit=1}", b'{level="x"}',
        b"1979-05-27", b"0x" + b"f" * 5_000, b"9" * 5_000, b'"' + b"x" * 5_000 + b'"', b'"\\u0000"', b'"a\\nb"',
        b'["a","b"]', b'"""\n' + b"x\n" * 99 + b'"""', b"{limit={limit=1}}", b"1e999",
    ))  # fmt: skip
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    key, equals, _ = lines[at].partition(b"=")
    new = random.choice((b"x" * 5_000, b'"a\\nb"', b"budget", b"a.b.c", b"model", b"[budget]", b"[tool]"))
    lines[at] = (key if equals and random.random() < 0.8 else new) + b"=" + value
    return b"\n".join(lines)


def relist(random: Random, data: bytes) -> bytes:
    """A line of SHA256SUMS made odd: the name, the digest or what stands between them."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    digest, _, name = lines[at].partition(b"  ")
    name = random.choice((
        name, b"", b".", b"..", b"../x", b"/etc/passwd", b"/dev/zero", b"a/../b", b"SHA256SUMS", b"\x00", b"a\x00b",
        b"x" * 5_000, b" ", name + b" ", name + b"\r", name + b"\x85", b"\xff", b"..\\x", b"*" + name, b"\x1b[2J",
    ))  # fmt: skip
    digest = random.choice((digest, digest.upper(), digest[:-1], b"g" * 64, b"", "é".encode() * 32, b" " * 64))
    lines[at] = digest + random.choice((b"  ", b" *", b" ", b"\t", b"   ")) + name
    return b"\n".join(lines)


def reheader(random: Random, data: bytes) -> bytes:
    """A safetensors file whose header is wrong: its length, offsets, shapes, types, or any of its JSON."""
    try:
        return _reheaded(random, data)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):  # it was wrong before
        return flip(random, data)


def _reheaded(random: Random, data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    header, rest = data[8 : 8 + length], data[8 + length :]
    action = random.random()
    if action < 0.3 or len(header) != length:
        wrong = (0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1, len(data), 100_000_001)
        return struct.pack("<Q", random.choice(wrong) % 2**64) + data[8:]
    if action < 0.8:
        header = _other_tensor(random, header)
    elif action < 0.9:
        header = nest(random, header)
    else:
        header = restructure(random, header)
    return struct.pack("<Q", len(header)) + header + rest


def _other_tensor(random: Random, header: bytes) -> bytes:
    tensors = json.loads(header)
    names = [name for name in tensors if name != "__metadata__"]
    name = random.choice(names)
    about = tensors[name]
    start, end = about["data_offsets"]
    offsets = ((0, 0), (end, start), (start, end + 1), (start + 1, end), (0, 2**63), (-1, end), (0, end), (2**64, 0))
    about |= random.choice((
        {"data_offsets": list(random.choice(offsets))},
        {"data_offsets": [start]},
        {"shape": random.choice(([], [0], [-1], [2**40, 2**40], about["shape"][::-1], [1.5], ["2"], [1] * 70))},
        {"dtype": random.choice(("F16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 1))},
        {},
    ))  # fmt: skip
    if random.random() < 0.2:
        tensors[random.choice(("x", "", "a\nb", "__metadata__", "x" * 5_000))] = tensors.pop(name)
    return json.dumps(tensors).encode()


def poison(random: Random, data: bytes) -> bytes:
    """NaN, infinities or huge numbers among the float32 values behind the header."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if 8 + length + 4 > len(data):
        return flip(random, data)
    at = random.randrange(8 + length, len(data) - 3)
    value = random.choice((float("nan"), float("inf"), float("-inf"), 3e38, 1e-45))
    return data[:at] + struct.pack("<f", value) + data[at + 4 :]


def recount(random: Random, data: bytes) -> bytes:
    """A GGUF file with wrong counts, version or lengths in its first part."""
    fields = {4: "<I", 8: "<Q", 16: "<Q", 24: "<Q"}  # version, tensors, keys, length of the first key's name
    at = random.choice([*fields, *(random.randrange(32, 400) for _ in range(4))])
    form = fields.get(at, random.choice(("<I", "<Q")))
    wrong = random.choice((0, 1, 2, 9, 12, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
    packed = struct.pack(form, wrong % 2 ** (32 if form == "<I" else 64))
    return data[:at] + packed + data[at + len(packed) :]


ANY: tuple[Mutation, ...] = (truncate, truncate, flip, flip, insert, insert, delete, repeat, swap)
TEXT: tuple[Mutation, ...] = (*ANY, renumber, recode)
RARE: tuple[Mutation, ...] = (blank, lengthen, nest)
KINDS: dict[str, tuple[Mutation, ...]] = {
    "text": TEXT,
    "json": (*TEXT, *(restructure,) * 9),
    "jsonl": (*TEXT, *(restructure_line,) * 9),
    "table": (*TEXT, *(quote,) * 6),
    "toml": (*TEXT, *(reset,) * 9),
    "sums": (*TEXT, *(relist,) * 9),
    "bytes": ANY,
    "safetensors": (*ANY, *(reheader,) * 9, poison, poison),
    "gguf": (*ANY, *(recount,) * 9),
}


def mutated(random: Random, data: bytes, kind: str) -> bytes:
    """One to three mutations of a file of this kind, one after the other; sometimes one of the rare, costly ones."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        choices = RARE if random.random() < 0.02 else KINDS[kind]
        data = random.choice(choices)(random, data)
    return data
