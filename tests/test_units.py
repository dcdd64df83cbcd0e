"""Units: what people write is understood, what is printed can be read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasize.units import LN2, bits, format_bytes, format_seconds, parse_bytes, parse_seconds


def test_a_bit_is_ln_2_nats() -> None:
    assert math.exp(-LN2) == pytest.approx(0.5, rel=1e-15)
    assert bits(LN2) == 1.0
    assert bits(10.0) == pytest.approx(14.426950408889634, rel=1e-14)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("0", 0),
        ("512", 512),
        ("512 B", 512),
        ("4 MB", 4_000_000),
        ("4MB", 4_000_000),
        ("4 mb", 4_000_000),
        ("4 MiB", 4 * 2**20),
        ("1.5 kB", 1500),
        ("1.5 KiB", 1536),
        ("2 GB", 2 * 10**9),
        ("2 GiB", 2**31),
        ("  7 kB  ", 7000),
    ],
)
def test_parse_bytes(text: str, n: int) -> None:
    assert parse_bytes(text) == n
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90 s", 90.0), ("1.5 sec", 1.5), ("15 min", 900.0), ("15m", 900), ("2 h", 7200), ("0.5 H", 1800)],
)
def test_parse_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


NONSENSE = ["", " ", "MB", "-4 MB", "4 parsecs", "nan", "inf", "1e3", "1,5 kB", "4 MB extra", "4 M B", ".5", "5."]


@pytest.mark.parametrize("text", [*NONSENSE, "4 min", "4 h"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write a number and one of b, kb, mb"):
        parse_bytes(text)


@pytest.mark.parametrize("text", [*NONSENSE, "4 MB", "4 KiB", "3 days"])
def test_parse_seconds_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write a number and one of s, sec"):
        parse_seconds(text)


def test_refusal_shows_what_was_written() -> None:
    with pytest.raises(ValueError, match="'4 parsecs'"):
        parse_bytes("4 parsecs")


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (8400, "8.4 kB"),
        (540_000_000, "540 MB"),
        (1_234_567_890, "1.23 GB"),
        (999_999, "1 MB"),
        (999_999_999, "1 GB"),
        (999.9, "1 kB"),
    ],
)
def test_format_bytes(n: float, text: str) -> None:
    assert format_bytes(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.0, "9.0 s"),
        (45.2, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(0, 10**12 - 10**9))
def test_sizes_read_back_to_three_figures(n: int) -> None:
    assert parse_bytes(format_bytes(n)) == pytest.approx(n, rel=0.005)


@given(st.floats(0.0, 59.0))
def test_short_durations_read_back(seconds: float) -> None:
    """Below a minute one unit is printed, which parse_seconds understands."""
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, abs=0.051 if seconds < 9.9 else 0.501)


@given(st.floats(10.0, 10**6))
def test_long_durations_add_up(seconds: float) -> None:
    """The printed parts, each parsed, sum to the duration within the last unit shown."""
    words = format_seconds(seconds).split()
    parts = [f"{number} {unit}" for number, unit in zip(words[::2], words[1::2], strict=True)]
    total = sum(parse_seconds(part) for part in parts)
    assert abs(total - seconds) <= (60.0 if seconds >= 3599.5 else 0.5)


@given(st.integers(0, 10**9), st.sampled_from([("kB", "KiB"), ("MB", "MiB"), ("GB", "GiB")]))
def test_binary_units_are_larger(n: int, units: tuple[str, str]) -> None:
    decimal, binary = (parse_bytes(f"{n} {unit}") for unit in units)
    assert decimal <= binary
    assert (decimal == binary) == (n == 0)
