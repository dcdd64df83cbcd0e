"""Units: nats and bits, bytes and seconds as people write them. Knows nothing else."""

from __future__ import annotations

import math
import re

LN2 = math.log(2.0)  # nats in one bit; also -ln ½, the token loss at which recall becomes certain

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")


def bits(nats: float) -> float:
    """The same information in bits.

    Examples:
        >>> bits(LN2)
        1.0
    """
    return nats / LN2


def _parse(text: str, table: dict[str, float] | dict[str, int], what: str) -> float:
    match = _QUANTITY.match(text)
    if match is None or match[2].lower() not in table:
        units = ", ".join(u for u in table if u)
        raise ValueError(f"{text!r} is not a {what}: write a number and one of {units}")
    value = float(match[1]) * table[match[2].lower()]
    if math.isinf(value):
        raise ValueError(f"{text[:20]!r}… is too large for a {what}")
    return value


def parse_bytes(text: str) -> int:
    """Bytes meant by text such as "4 MB" (10⁶) or "4 MiB" (2²⁰).

    Raises:
        ValueError: not a number with a known unit.

    Examples:
        >>> parse_bytes("4 MB"), parse_bytes("4 MiB"), parse_bytes("512")
        (4000000, 4194304, 512)
    """
    return round(_parse(text, _BYTES, "size"))


def parse_seconds(text: str) -> float:
    """Seconds meant by text such as "90", "15 min" or "2 h".

    Raises:
        ValueError: not a number with a known unit.

    Examples:
        >>> parse_seconds("90"), parse_seconds("15 min"), parse_seconds("2 h")
        (90.0, 900.0, 7200.0)
    """
    return _parse(text, _SECONDS, "duration")


def format_bytes(n: float) -> str:
    """A size to read.

    Examples:
        >>> format_bytes(512), format_bytes(8448), format_bytes(999_960)
        ('512 B', '8.45 kB', '1 MB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale * 0.9995:  # 999.96 kB is "1 MB", not "1e+03 kB"
            return f"{n / scale:.3g} {unit}"
    return f"{n:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration to read.

    Examples:
        >>> format_seconds(0.8), format_seconds(45), format_seconds(200), format_seconds(7500)
        ('0.8 s', '45 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
