"""The error tree: as drawn, with its data, across processes."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from lorasize import errors
from lorasize.errors import (
    CalibrationError,
    CorpusError,
    FitError,
    InfeasibleCorpusError,
    LorasizeError,
    ModelError,
    StalePlanError,
    TrainingDivergedError,
)
from lorasize.records import FeasibilityIssue

ISSUE = FeasibilityIssue(kind="same_prompt", passages=(0, 1), position=0, file="a.txt", line=4, message="two answers")


def classes() -> dict[str, type[Exception]]:
    """Exception classes that the module defines."""
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }


def drawn() -> dict[str, str | None]:
    """Each error named in the docstring's drawing, with its parent."""
    tree: dict[str, str | None] = {}
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([ │├└─]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            tree[match[2]] = parents[depth - 1] if depth else None
            parents[depth] = match[2]
    return tree


def test_drawing_equals_the_classes() -> None:
    bases = {name: cls.__bases__ for name, cls in classes().items()}
    assert all(len(b) == 1 for b in bases.values())
    assert {name: b[0].__name__ for name, b in bases.items()} == {k: v or "Exception" for k, v in drawn().items()}


def test_drawing_starts_at_one_root() -> None:
    assert [name for name, parent in drawn().items() if parent is None] == ["LorasizeError"]
    assert LorasizeError.__base__ is Exception


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CorpusError("bad byte"), "bad byte"),
        (CorpusError("bad byte", file="a.txt"), "a.txt: bad byte"),
        (CorpusError("bad byte", file="a.txt", line=3), "a.txt:3: bad byte"),
        (CorpusError("bad byte", line=3), "bad byte"),
    ],
)
def test_corpus_error_names_its_place(error: CorpusError, message: str) -> None:
    assert str(error) == message


EXAMPLES: list[tuple[LorasizeError, dict[str, object]]] = [
    (LorasizeError("seen"), {}),
    (CorpusError("seen", file="a.txt", line=3), {"file": "a.txt", "line": 3}),
    (ModelError("seen"), {}),
    (CalibrationError("seen"), {}),
    (FitError("seen", unidentified=["length_exponent"]), {"unidentified": ("length_exponent",)}),
    (StalePlanError("seen", changed=["corpus_sha256"]), {"changed": ("corpus_sha256",)}),
    (InfeasibleCorpusError("seen", issues=[ISSUE]), {"issues": (ISSUE,)}),
    (TrainingDivergedError("seen", step=17), {"step": 17}),
]


def test_examples_cover_every_class() -> None:
    assert {type(error).__name__ for error, _ in EXAMPLES} == set(classes())


@pytest.mark.parametrize(("error", "data"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_errors_carry_their_data(error: LorasizeError, data: dict[str, object]) -> None:
    assert vars(error) == data
    assert str(error).endswith("seen")


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda error: type(error).__name__)
def test_errors_survive_a_process_boundary(error: LorasizeError) -> None:
    """An executor's worker pickles what it raises; an error that does not come back kills the pool instead."""
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def raised_texts() -> list[tuple[str, str]]:
    """Every string inside a raise statement of the package, cli apart, with its place."""
    package = Path(errors.__file__).parent
    return [
        (f"{path.name}:{node.lineno}", part.value)
        for path in sorted(package.rglob("*.py"))
        if "cli" not in path.relative_to(package).parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Raise)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def test_no_message_names_a_flag() -> None:
    """pip's own options apart: a message may say what to install."""
    texts = [(place, re.sub(r"pip install( --?[a-z-]+)*", "", text)) for place, text in raised_texts()]
    assert texts
    assert [(place, text) for place, text in texts if re.search(r"(?<!\w)--[a-z]", text)] == []
