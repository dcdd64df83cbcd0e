"""lorasize on a CUDA card: is it right, does the law hold there, how fast is it, and beside whom.

    python benchmarks/gpu.py [correct] [real] [large] [disk] [peers] --out FOLDER [--seconds PART=N ...]
    python benchmarks/gpu.py --tiny --out FOLDER   every part on a CPU, in some three minutes; its figures mean nothing

One table last; `results.json` in the folder is written after every row, with card, versions, command and date beside
them. A part has a time limit; what it had measured by then stays. The parts: support/gpu_correct.py, gpu_real.py,
gpu_large.py, gpu_disk.py and gpu_peers.py. TRL, Liger and bitsandbytes are used where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore")

SECONDS = {"correct": 60, "real": 240, "large": 240, "disk": 240, "peers": 150}
PACKAGES = ("torch", "transformers", "peft", "trl", "liger-kernel", "bitsandbytes")


def versions() -> dict[str, str]:
    """Of what is installed of that."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None, help="folder of results.json and of all that is made")
    parser.add_argument("--seconds", action="append", default=[], metavar="PART=N", help="another limit for a part")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU, to see that all of it runs")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(SECONDS):
        parser.error(f"no part {min(unknown)}: there are {', '.join(SECONDS)}")
    limits = SECONDS | {name: float(n) for name, _, n in (text.partition("=") for text in chosen.seconds)}
    out = chosen.out or Path(tempfile.mkdtemp(prefix="lorasize-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    run(chosen.parts or list(SECONDS), limits, out.resolve(), tiny=chosen.tiny)


def run(parts: list[str], limits: dict[str, float], out: Path, *, tiny: bool) -> None:
    """The parts, one after the other."""
    import torch
    from support.gpu_correct import correct
    from support.gpu_disk import disk
    from support.gpu_large import large
    from support.gpu_peers import peers
    from support.gpu_real import real
    from support.gpu_rows import Rows, table

    from lorasize.models import device_name, pick_device

    device = pick_device("cpu" if tiny else "cuda")
    about = {"device": device_name(device), "date": datetime.now(UTC).strftime("%Y-%m-%d"), **versions()}
    about |= {"command": f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}", "tiny": tiny}
    if device.type == "cuda":
        about["cuda"] = str(torch.version.cuda)
    rows = Rows(out / "results.json", about)
    work = {
        "correct": lambda: correct(rows, device, tiny=tiny),
        "real": lambda: real(rows, device, out / "real", tiny=tiny),
        "large": lambda: large(rows, device, out / "large", tiny=tiny),
        "disk": lambda: disk(rows, device, out / "disk", tiny=tiny),
        "peers": lambda: peers(rows, device, limits["peers"], tiny=tiny),
    }
    for name in parts:
        with rows.within(name, limits[name]):
            work[name]()
    print(f"\n{about}\n{table(rows.rows)}")


if __name__ == "__main__":
    main()
