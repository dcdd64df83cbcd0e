"""How long tests wait, and how they tell time that grows too fast, on a machine of any speed with anything else on it.

Only what would never end is given up, after `HANGS` seconds. Whether time grows with the size of the input or with its
square is told by comparing this machine with itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HANGS = 1800.0  # seconds after which something counts as hanging, however busy the machine
TIMES = 16  # as large is the larger of two inputs
TRIES = 5


def grows_with_its_input(work: Callable[[int], object], size: int) -> bool:
    """Whether `work(size)` takes about `TIMES` as much processor time as `work(size // TIMES)`, and not its square.

    The time is this process's own, so that others do not count. What disturbs one try need not disturb the next, while
    time that grows with the square takes far too long in all of them.
    """
    work(size // TIMES)  # what is done once only is done
    return any(_taken(work, size) < 4 * TIMES * _taken(work, size // TIMES) for _ in range(TRIES))


def _taken(work: Callable[[int], object], size: int) -> float:
    began = time.process_time()
    work(size)
    return time.process_time() - began

# What gives up after some seconds in Ray, or makes room in a memory that others have filled.
PATIENT_RAY = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_failure_threshold": "600",
    "RAY_agent_register_timeout_ms": f"{1000 * HANGS:.0f}",
    **{
        f"RAY_{name}": f"{HANGS:.0f}"
        for name in (
            "worker_register_timeout_seconds", "gcs_server_request_timeout_seconds", "raylet_start_wait_time_s",
            "gcs_rpc_server_reconnect_timeout_s", "DASHBOARD_STARTUP_TIMEOUT_S",
        )
    },
}  # fmt: skip
