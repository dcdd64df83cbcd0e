"""Calibrations and plans on disk: where they lie, how they are read and written, and which one fits a model.

A calibration belongs to the model's weights, configuration and tokenizer, to a dtype and to a training recipe, and to
the quantisation that the weights were loaded with. The kind
of device is matched too when searching, because its times are measured there; a file named outright is taken, and where
none fits one of another kind of device (`nearest_calibration`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from lorasize.artifacts.files import cache_folder, write_text
from lorasize.artifacts.records import read_record
from lorasize.errors import CalibrationError
from lorasize.records import Calibration, ModelFingerprint, digest, to_json

FOLDER = "calibrations"


def calibration_path(
    model_ref: str, device: str, dtype: str, directory: Path, quantization: str | None = None
) -> Path:
    """Where the calibration of this model belongs: `<model>.<device>.<dtype>[-<quantisation>].json` in `directory`."""
    kind = dtype if quantization is None else f"{dtype}-{quantization}"
    return directory / f"{_file_name(model_ref)}.{_safe(device)}.{_safe(kind)}.json"


def _file_name(model_ref: str) -> str:
    """A model reference as part of a file name.

    `owner/name` becomes `owner--name`. Of a local path only the last part is kept, with a digest of the whole that
    tells namesakes apart: a committed file should not show where its author keeps models.
    """
    path_like = model_ref.startswith((".", "/", "~")) or "\\" in model_ref or model_ref.count("/") > 1
    if not path_like and len(model_ref) <= 120:
        return _safe(model_ref.replace("/", "--"))
    last = re.split(r"[/\\]", model_ref.rstrip("/\\"))[-1]
    return f"{_safe(last)[:100]}-{hashlib.sha256(model_ref.encode()).hexdigest()[:8]}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".") or "model"


def search_path() -> list[Path]:
    """Folders that may hold calibrations, nearest first: the project's, the user's, the shipped ones."""
    found: dict[Path, Path] = {}
    for folder in (Path(FOLDER), cache_folder() / FOLDER, _shipped()):
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _shipped() -> Path:
    """The calibrations inside the wheel; in a source checkout, those beside the package."""
    inside = Path(str(files("lorasize") / FOLDER))
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / FOLDER


def read_calibration(path: Path) -> Calibration:
    """The calibration in this file.

    Raises:
        CalibrationError: missing, over 50 MB, not JSON, of another schema, or with values that are none.
    """
    return read_record(path, Calibration, "lorasize.calibration", CalibrationError)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Put the calibration at `path` whole or not at all, folders included."""
    write_text(to_json(calibration), path)


def find_calibration(
    fingerprint: ModelFingerprint,
    ref: str,
    device_type: str,
    dtype: str,
    recipe: str,
    explicit: Path | None = None,
    *,
    quantization: str | None = None,
) -> tuple[Calibration, Path]:
    """The first calibration that fits, with its file. Looks for `ref`'s own file name first, then at every other.

    `device_type` is "cpu", "cuda", "mps" or "xpu"; which device of that kind is left to the caller, who should call
    times rough where `calibration.device` is another. An `explicit` file is the only one looked at and may come from
    any device.

    Raises:
        CalibrationError: none fits; the message lists what was found and why each did not match.
    """
    wanted = (fingerprint, device_type if explicit is None else None, dtype, recipe, quantization)
    reasons = []
    for path in [explicit] if explicit is not None else _found(ref, device_type, dtype, quantization):
        read = _fitting(path, *wanted)
        if isinstance(read, Calibration):
            return read, path
        reasons.append(read)
    _refuse(ref, device_type, _kind(dtype, quantization), reasons)


def near_misses(
    fingerprint: ModelFingerprint,
    ref: str,
    device_type: str,
    dtype: str,
    recipe: str,
    *,
    quantization: str | None = None,
) -> list[str]:
    """Why each calibration that did not come with lorasize does not fit."""
    own = (path for path in _found(ref, device_type, dtype, quantization) if not is_shipped(path))
    read = (_fitting(path, fingerprint, device_type, dtype, recipe, quantization) for path in own)
    return [reason for reason in read if isinstance(reason, str)]


def _fitting(
    path: Path,
    fingerprint: ModelFingerprint,
    device_type: str | None,
    dtype: str,
    recipe: str,
    quantization: str | None,
) -> Calibration | str:
    """The calibration in a file if it fits, else why not."""
    try:
        calibration = read_calibration(path)
    except CalibrationError as error:
        return str(error)
    wrong = _mismatch(calibration, fingerprint, dtype, recipe, quantization)
    if device_type is not None and device_kind(calibration.device) != device_type:
        wrong.append(f"made on {calibration.device}, not {device_type}")
    return f"{path}: {'; '.join(wrong)}" if wrong else calibration


def find_by_digest(sha256: str) -> tuple[Calibration, Path] | None:
    """The calibration a plan was made from, also after runs have joined it, with its file; None when out of reach."""
    return next((found for found in _readable() if sha256 in (digest(found[0]), *found[0].grown_from)), None)


def _readable() -> Iterator[tuple[Calibration, Path]]:
    """Every calibration in reach that can be read, nearest first."""
    for path in (path for folder in search_path() for path in sorted(folder.glob("*.json"))):
        with contextlib.suppress(CalibrationError):
            yield read_calibration(path), path


def is_shipped(path: Path) -> bool:
    """Whether a file lies among the calibrations that come with lorasize."""
    return path.resolve().parent == _shipped().resolve()


def nearest_calibration(
    fingerprint: ModelFingerprint, recipe: str, dtype: str, quantization: str | None = None
) -> tuple[Calibration, bool] | None:
    """One to go by where none fits, and whether it differs in nothing but the kind of device.

    Of this model in this dtype, else in another, else the one with most observations. None when no calibration in reach
    is for this training recipe.
    """

    def like(one: Calibration) -> tuple[bool, bool]:
        kind = (one.dtype, one.quantization) == (dtype, quantization)
        return one.model.fingerprint == fingerprint, kind and one.model.fingerprint == fingerprint

    able = (calibration for calibration, _ in _readable() if calibration.recipe == recipe)
    best = max(able, key=lambda c: (like(c), len(c.observations)), default=None)
    return None if best is None else (best, all(like(best)))


def bounded_calibration(fingerprint: ModelFingerprint, recipe: str) -> Calibration | None:
    """The nearest calibration of this model, on whatever device and in whatever dtype, that knows a bound on drift."""
    able = (calibration for calibration, _ in _readable() if calibration.bounded is not None)
    return next((one for one in able if one.model.fingerprint == fingerprint and one.recipe == recipe), None)


def _found(ref: str, device_type: str, dtype: str, quantization: str | None) -> Iterator[Path]:
    for folder in search_path():
        own = calibration_path(ref, device_type, dtype, folder, quantization)
        yield from sorted(folder.glob("*.json"), key=lambda p: (p.name != own.name, p.name))


def device_kind(device: str) -> str:
    """The kind alone: "cuda" of "cuda:0" and of "cuda (NVIDIA A100)"."""
    return re.split(r"[^a-z]", device.strip().lower(), maxsplit=1)[0]


def _kind(dtype: str, quantization: str | None) -> str:
    """A dtype and a quantisation in words."""
    return dtype if quantization is None else f"{dtype} with {quantization} weights"


def _mismatch(
    calibration: Calibration, fingerprint: ModelFingerprint, dtype: str, recipe: str, quantization: str | None
) -> list[str]:
    """Why this calibration may not be used, empty when it may."""
    made = calibration.model
    parts = [p for p in ("weights", "config", "tokenizer") if getattr(made.fingerprint, p) != getattr(fingerprint, p)]
    wrong = [f"made for {made.ref}, whose {' and '.join(parts)} {'differ' if len(parts) > 1 else 'differs'}"] * bool(
        parts
    )
    wrong += [f"dtype {calibration.dtype}, not {dtype}"] * (calibration.dtype != dtype)
    weights = (calibration.quantization or "plain", quantization or "plain")
    wrong += [f"{weights[0]} weights, not {weights[1]}"] * (weights[0] != weights[1])
    return wrong + [f"recipe {calibration.recipe}, not {recipe}"] * (calibration.recipe != recipe)


def _refuse(ref: str, device_type: str, dtype: str, reasons: list[str]) -> NoReturn:
    wanted = f"No calibration fits {ref} in {dtype} on {device_type}"
    if not reasons:
        looked = ", ".join(str(p) for p in search_path())
        raise CalibrationError(f"{wanted}: none found in {looked}. Run a calibration of this model first.")
    listed = "".join(f"\n  {reason}" for reason in reasons)
    raise CalibrationError(f"{wanted}. Run a calibration of this model first. Found:{listed}")
