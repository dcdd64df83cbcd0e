"""The measure of growth can find fault, and takes no figure of this machine for one."""

from __future__ import annotations

from support.patience import grows_with_its_input


def test_a_square_is_told_from_a_line() -> None:
    assert grows_with_its_input(lambda n: [sum(range(1000)) for _ in range(n)], 4000)
    assert not grows_with_its_input(lambda n: [sum(range(n)) for _ in range(n)], 6400)
