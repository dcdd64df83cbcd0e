"""Imports against the level table, one door for each dependency, and a start without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.paths import ROOT
from support.patience import HANGS

PACKAGE = ROOT / "lorasize"

# fmt: off
LEVELS = (
    ("errors", "units"),
    ("records",),
    ("artifacts", "corpus", "law"),
    ("planning",),
    ("models",),
    ("losses", "recall"),
    ("training",),
    ("probing",),
    ("verbs",),
    ("report", "cli"),
)
# fmt: on
ORDER = tuple(module for level in LEVELS for module in level)  # a module may import what stands before it
ENTRY = frozenset({"__init__", "__main__"})  # above every level; nobody imports more than the version from them

DOORS = {
    "click": {"cli"},
    "rich": {"report"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "scipy": {"law"},
    "joblib": {"probing"},
    "ray": {"probing"},
    "kingfisher_sdk": {"corpus"},
    "accelerate": {"models"},
    "peft": {"models"},
    "transformers": {"models", "corpus", "recall"},
    "torch": {"models", "losses", "recall", "training", "probing", "verbs", "cli"},  # cli: in functions only, see below
}


Statement = ast.Import | ast.ImportFrom


class Import(NamedTuple):
    """One imported name: who, what, where, and whether it runs when the module loads or only for the type checker."""

    importer: str
    target: str
    place: str
    at_load: bool
    type_checking: bool


def unit_of(path: Path, package: Path) -> str:
    """The row of the table a file belongs to: `corpus` for corpus.py and for corpus/anything.py."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is `if TYPE_CHECKING:` or `if typing.TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def import_nodes(node: ast.AST, *, at_load: bool, typed: bool) -> Iterator[tuple[Statement, bool, bool]]:
    """Every import statement below a node, with what is known of when it runs."""
    if isinstance(node, Statement):
        yield node, at_load, typed
        return
    inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guarded = {id(child) for child in node.body} if is_type_checking(node) else set()
    for child in ast.iter_child_nodes(node):
        hidden = id(child) in guarded
        yield from import_nodes(child, at_load=at_load and not inside_function and not hidden, typed=typed or hidden)


def absolute(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """The dotted module that `from … import` names, relative dots resolved."""
    if not node.level:
        return node.module or ""
    parents = (package.name, *path.relative_to(package).parent.parts)
    kept = parents[: len(parents) - (node.level - 1)]
    return ".".join((*kept, node.module) if node.module else kept)


def targets(node: Statement, path: Path, package: Path) -> list[str]:
    """Dotted names a statement imports; `from lorasize import law` names `lorasize.law`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = absolute(node, path, package)
    return [f"{module}.{alias.name}" for alias in node.names] if module == package.name else [module]


def walk(package: Path) -> list[Import]:
    """Every import of every file of a package."""
    return [
        Import(unit_of(path, package), target, f"{path.relative_to(package.parent)}:{node.lineno}", at_load, typed)
        for path in sorted(package.rglob("*.py"))
        for node, at_load, typed in import_nodes(ast.parse(path.read_text("utf-8")), at_load=True, typed=False)
        for target in targets(node, path, package)
    ]


def wrong_level(found: Import, package: str) -> bool:
    """Whether an import climbs or goes sideways against the flow. Type-checking imports count as any other."""
    top, _, rest = found.target.partition(".")
    if top != package or found.importer not in ORDER or rest == "__version__":
        return False
    imported = rest.partition(".")[0]
    if imported == found.importer:
        return False
    return imported not in ORDER or ORDER.index(imported) >= ORDER.index(found.importer)


def wrong_door(found: Import) -> bool:
    """Whether a dependency enters by another module than its own. Type-checking imports load nothing and are free."""
    allowed = DOORS.get(found.target.partition(".")[0])
    return allowed is not None and not found.type_checking and found.importer not in allowed


def units_of(package: Path) -> set[str]:
    """Rows of the table that exist in a package."""
    return {unit_of(path, package) for path in package.rglob("*.py")}


IMPORTS = walk(PACKAGE)


def test_every_module_is_in_the_table() -> None:
    assert units_of(PACKAGE) - set(ORDER) - ENTRY == set()


def test_imports_go_down_or_back_along_the_flow() -> None:
    climbing = [f"{i.place}: {i.importer} imports {i.target}" for i in IMPORTS if wrong_level(i, "lorasize")]
    assert climbing == []


def test_each_dependency_has_one_door() -> None:
    assert [f"{i.place}: {i.importer} imports {i.target}" for i in IMPORTS if wrong_door(i)] == []


def test_facts_know_no_format() -> None:
    places = tuple(str(Path("lorasize", "report", name)) for name in ("facts", "text.py"))
    formats = {"rich", "matplotlib", "jinja2"} | {f"lorasize.report.{name}" for name in ("formats", "terminal")}
    below = [i for i in IMPORTS if i.place.startswith(places)]
    assert below
    wrong = [i for i in below if formats & {i.target.partition(".")[0], ".".join(i.target.split(".")[:3])}]
    assert [f"{i.place} imports {i.target}" for i in wrong] == []


def test_cli_loads_torch_only_inside_commands() -> None:
    heavy = {"torch", "transformers", "peft", "scipy"}
    early = [i for i in IMPORTS if i.importer in {"cli", *ENTRY} and i.at_load]
    assert [i.place for i in early if i.target.partition(".")[0] in heavy] == []


def test_every_third_party_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(d for extra, listed in extras.items() if extra != "dev" for d in listed)]
    names = {re.split(r"[<>=!~\[; ]", d)[0].replace("-", "_").lower() for d in declared}
    assert "kingfisher_secret_scanner" in names  # what kingfisher_sdk is distributed as
    elsewhere = {"vllm"}  # only ever in a Python of its own: it pins another transformers
    known = names | elsewhere | set(sys.stdlib_module_names) | {"lorasize", "kingfisher_sdk"}
    unknown = [f"{i.place}: {i.target}" for i in IMPORTS if i.target.partition(".")[0].lower() not in known]
    assert unknown == []


def test_contributing_shows_these_tables() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|`]+?) \| (`[a-z_]+`(?: `[a-z_]+`)*) \|$", text, flags=re.MULTILINE))
    levels = {str(level): modules for level, modules in enumerate(LEVELS)}
    assert {key: tuple(re.findall(r"`(\w+)`", rows[key])) for key in levels} == levels
    doors = {name: set(re.findall(r"`(\w+)`", value)) for key, value in rows.items() for name in key.split(", ")}
    assert {name: doors[name] for name in DOORS if name != "torch"} == {k: v for k, v in DOORS.items() if k != "torch"}


ACCELERATORS = re.compile(r"\btorch\.(?:cuda|mps|xpu)\b")
ACCELERATOR_DOORS = {"models/devices.py", "training/graphs.py", "recall/steps.py"}


def test_accelerators_have_one_door() -> None:
    assert all(map(ACCELERATORS.search, ("torch.cuda.synchronize()", "from torch.mps import", "import torch.xpu")))
    assert not ACCELERATORS.search("torch.cudagraph")
    asking = (path for path in PACKAGE.rglob("*.py") if ACCELERATORS.search(path.read_text("utf-8")))
    found = {path.relative_to(PACKAGE).as_posix() for path in asking}
    assert "models/devices.py" in found
    assert found <= ACCELERATOR_DOORS


def sources() -> list[Path]:
    """Every Python file of the project that is not a copy."""
    tops = ("lorasize", "tests", "benchmarks", "examples", "docs")
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def test_files_and_functions_are_as_short_as_contributing_says() -> None:
    long_files = {path.name: n for path in sources() if (n := len(path.read_text("utf-8").splitlines())) > 400}
    long_functions = {
        f"{path.name}:{node.name}": n
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and (n := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert (long_files, long_functions) == ({}, {})


def test_tests_lie_by_room_and_import_no_other_test() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    rooms = {path.relative_to(ROOT / "tests").parts[0] for path in paths if path.parent != ROOT / "tests"}
    assert rooms - units_of(PACKAGE) == {"faults", "fuzz", "promises", "support"}
    imported = {(path.name, target) for path in paths for node, _, _ in import_nodes(ast.parse(path.read_text("utf-8")),
                at_load=True, typed=False) for target in targets(node, path, PACKAGE)}  # fmt: skip
    assert ("test_architecture.py", "support.paths") in imported
    assert [pair for pair in imported if pair[1].rpartition(".")[2].startswith(("test_", "conftest"))] == []


def test_the_front_door_has_few_names() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 18


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Fields of a dataclass, and what methods assign to self."""
    fields = {ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)}
    on_self = {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and ast.unparse(part.value) == "self"
    }
    return fields | on_self


def test_no_class_has_more_attributes_than_contributing_says() -> None:
    many = {
        f"{path.name}:{node.name}": n
        for path in PACKAGE.rglob("*.py")
        if "records" not in path.relative_to(PACKAGE).parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and (n := len(attributes_of(node))) > 12
    }
    assert many == {}


@pytest.mark.parametrize(
    ("file", "source", "level", "door"),
    [
        ("law/fit.py", "from lorasize import planning", True, False),
        ("law/fit.py", "from ..planning import plan", True, False),
        ("law/fit.py", "import lorasize.planning.plan", True, False),
        ("planning/plan.py", "from lorasize.law.form import predict", False, False),
        ("corpus/text.py", "from . import csv_files", False, False),
        ("corpus/text.py", "from ..law import fit", True, False),
        ("corpus/text.py", "from ..records import Passage", False, False),
        ("errors.py", "if TYPE_CHECKING:\n    from lorasize.records import Plan", True, False),
        ("units.py", "def f():\n    from lorasize import cli", True, False),
        ("law/fit.py", "from lorasize import __version__", False, False),
        ("law/fit.py", "from lorasize import Plan", True, False),
        ("planning/plan.py", "import scipy.stats", False, True),
        ("artifacts/files.py", "def f():\n    from torch import nn", False, True),
        ("artifacts/files.py", "if TYPE_CHECKING:\n    import torch", False, False),
        ("artifacts/files.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", False, True),
        ("report.py", "try:\n    import torch\nexcept ImportError:\n    pass", False, True),
        ("cli.py", "from rich.table import Table", False, True),
        ("models/adapters.py", "import peft", False, False),
    ],
)
def test_walker_judges(tmp_path: Path, file: str, source: str, level: bool, door: bool) -> None:
    path = tmp_path / "lorasize" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, "utf-8")
    found = walk(tmp_path / "lorasize")
    assert found
    assert any(wrong_level(i, "lorasize") for i in found) is level
    assert any(wrong_door(i) for i in found) is door


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing some modules in a fresh interpreter."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=HANGS, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


LIGHT = [room for level in LEVELS[:4] for room in level] + ["verbs/check", "verbs/learn"]


def modules_of(place: str) -> list[str]:
    """The dotted modules of a room, or the one that is named."""
    folder = PACKAGE / place
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def test_cli_starts_without_torch() -> None:
    assert loaded_by(["lorasize.cli"]) & {"torch", "transformers", "peft", "scipy", "matplotlib", "ray"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("place", LIGHT)
def test_light_rooms_load_no_torch(place: str) -> None:
    heavy = {"torch", "transformers", "peft", "rich", "matplotlib", "click", "ray", "joblib", "pyarrow"}
    assert loaded_by(modules_of(place)) & heavy == set()
