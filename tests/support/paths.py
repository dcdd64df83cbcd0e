"""Where things lie in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "calibrations" / "builtin-smollm2-135m-instruct.cpu.float32.json"
