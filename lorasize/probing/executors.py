"""Where probes run besides this process: in processes of this machine (joblib), or on a Ray cluster.

A job is JSON and so is its result. What has come back is in the caller's journal, so a driver that dies loses only what
was under way. A worker that dies is replaced by Ray; joblib gives up, and the same command goes on from the journal.
Where a machine has several cards, joblib's worker k computes on card k modulo their number, and a probe on Ray leases a
card for itself. The only door to joblib and ray.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from lorasize import models
from lorasize.errors import CalibrationError
from lorasize.models.devices import n_cards
from lorasize.probing.probes import run_probe
from lorasize.records import ProbeJob

_LEASED = ("cuda", "xpu")  # what Ray counts as a GPU
Execute = Callable[[Sequence[ProbeJob]], Iterator[str]]  # observations as JSON, in the order in which they finish


def executor(name: str, workers: int = 1) -> Execute | None:
    """`local`: this process, or `workers` processes beside it; `ray` or `ray://host:port`: a Ray cluster.

    None means one after another in this process, with the model that is loaded already.

    Raises:
        CalibrationError: there is no executor of that name, or ray is not installed.
    """
    if name == "local":
        return _beside(workers) if workers > 1 else None
    if name == "ray" or name.startswith("ray://"):
        return functools.partial(_cluster, address=None if name == "ray" else name, workers=workers)
    raise CalibrationError(f"there is no executor {name!r}: use local, ray or ray://host:port")


def run_job(text: str) -> str:
    """The observation of one job, JSON in and out. The model stays loaded for the next job of this process."""
    job = ProbeJob.model_validate_json(text)
    torch.set_num_threads(job.threads)
    base = _base(job.ref, job.revision, job.device, job.dtype, job.attn, job.quantization, job.device_map)
    return run_probe(base, job.spec, job.sample).model_dump_json()


@functools.lru_cache(maxsize=1)
def _base(
    ref: str, revision: str | None, device: str, dtype: str, attn: str, quantization: str | None, device_map: str | None
) -> models.BaseModel:
    how = {"device": device, "dtype": dtype, "attn": attn, "quantization": quantization, "device_map": device_map}
    return models.load(ref, revision=revision, **cast(Any, how))


def _texts(jobs: Sequence[ProbeJob], threads: int) -> list[str]:
    return [job.model_copy(update={"threads": threads}).model_dump_json() for job in jobs]


def _beside(workers: int) -> Execute:
    """So many processes, which find in one folder who is which of them."""
    claims = tempfile.mkdtemp(prefix="lorasize-workers-")
    execute = functools.partial(_processes, workers=workers, claims=claims)
    weakref.finalize(execute, shutil.rmtree, claims, ignore_errors=True)
    return execute


def _processes(jobs: Sequence[ProbeJob], workers: int, claims: str) -> Iterator[str]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    threads = max(1, (os.cpu_count() or 1) // workers)
    cards = _cards(jobs)
    run = functools.partial(_on_a_card, run_job, claims, workers, cards) if len(cards) > 1 else run_job
    try:
        yield from parallel(delayed(run)(text) for text in _texts(jobs, threads))
    except TerminatedWorkerError:
        raise CalibrationError("a worker process died, for want of memory perhaps: the same call goes on") from None


def _cards(jobs: Sequence[ProbeJob]) -> list[str]:
    """The cards that probes may share out: none where the caller named one, or spreads the model over them."""
    if not jobs or jobs[0].device_map is not None:
        return []
    device = models.pick_device(jobs[0].device)
    return [] if device.index is not None else [f"{device.type}:{k}" for k in range(n_cards(device.type))]


def _on_a_card(run: Callable[[str], str], claims: str, workers: int, cards: Sequence[str], text: str) -> str:
    """The job done on the card of this worker, which is the same as long as it lives."""
    number, _ = _claimed(claims, workers)
    job = ProbeJob.model_validate_json(text)
    return run(job.model_copy(update={"device": cards[number % len(cards)]}).model_dump_json())


@functools.cache
def _claimed(claims: str, workers: int) -> tuple[int, object]:
    """Which of the workers this process is, as one that replaces it will be, and the lock that says so."""
    from filelock import FileLock, Timeout

    for number in range(workers):
        lock = FileLock(Path(claims, str(number)))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return number, lock
    return 0, None  # of more than was asked for: one is about to end


def _cluster(jobs: Sequence[ProbeJob], address: str | None, workers: int) -> Iterator[str]:
    try:
        import ray
    except ImportError:
        raise CalibrationError("running on Ray needs ray: pip install 'lorasize[ray]'") from None
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    device = models.pick_device(jobs[0].device) if jobs else torch.device("cpu")
    gpus = int(device.type in _LEASED)  # the one that a job leases is all that it sees, so that no two probes share one
    cpus = _cpus([node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]], workers, gpus)
    placed = [job.model_copy(update={"device": device.type}) for job in jobs] if gpus else jobs
    texts = _texts(placed, cpus)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(run_job)
    pending = [remote.remote(text) for text in texts]
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            yield from ray.get(done)
    finally:
        for job in pending:
            ray.cancel(job, force=True)


def _cpus(nodes: Sequence[dict[str, float]], workers: int, gpus: int) -> int:
    """CPUs of a job: a worker's share of a machine, and where it leases a card no more than leaves a share to each.

    Raises:
        CalibrationError: a card is needed, and no machine of the cluster has one.
    """
    largest = max((node.get("CPU", 1) for node in nodes), default=1)
    share = int(min(largest, os.cpu_count() or 1)) // workers
    if gpus:
        each = [node.get("CPU", 1) // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
        if not each:
            raise CalibrationError("no machine of the Ray cluster has a GPU: start it on those that do")
        share = min(share, int(min(each)))
    return max(1, share)
