"""The package as a library: complete, typed, and free until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lorasize
from lorasize import errors


def test_every_public_name_is_there() -> None:
    for name in lorasize.__all__:
        assert getattr(lorasize, name) is not None
        assert name in dir(lorasize)
    assert lorasize.__all__ == sorted(lorasize.__all__, key=lambda name: (name.lower() == name, name))
    for verb in ("calibrate", "plan", "apply", "verify", "check"):
        assert getattr(lorasize, verb).__module__ == f"lorasize.verbs.{verb}"


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree == {name for name in lorasize.__all__ if name.endswith("Error")}
    assert all(issubclass(getattr(lorasize, name), lorasize.LorasizeError) for name in tree)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="calibrat"):
        lorasize.calibrat  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = "import lorasize, sys; print({'torch', 'numpy', 'pydantic', 'click'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
def test_a_type_checker_sees_the_verbs(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "use.py"
    script.write_text(
        "from pathlib import Path\nimport lorasize\n"
        "reveal_type(lorasize.plan([Path('a')]).plan)\nreveal_type(lorasize.apply(lorasize.plan([]).plan))\n"
        "lorasize.plan('a', device=3)\n"
    )
    heavy = ("torch", "transformers", "peft", "scipy", "numpy", "pyarrow", "matplotlib", "rich", "ray")
    config = tmp_path / "mypy.ini"  # their own types play no part, and take half a minute to read
    sections = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in heavy)
    config.write_text(f"[mypy]\nstrict = true\nignore_missing_imports = true\n{sections}")
    said, _, code = api.run([str(script), "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")])
    assert 'Revealed type is "lorasize.records.plan.Plan"' in said, said
    assert 'Revealed type is "lorasize.verbs.apply.Applied"' in said
    assert 'Argument "device" to "plan" has incompatible type "int"' in said
    assert code == 1
