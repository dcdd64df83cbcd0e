"""Where probes run besides this process: in processes of this machine (joblib), or on a Ray cluster.

A job is JSON and so is its result. What has come back is in the caller's journal, so a driver that dies loses only what
was under way. A worker that dies is replaced by Ray; joblib gives up, and the same command goes on from the journal.
The only door to joblib and ray.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch

from lorasize import models
from lorasize.errors import CalibrationError
from lorasize.probing.probes import run_probe
from lorasize.records import ProbeJob

Execute = Callable[[Sequence[ProbeJob]], Iterator[str]]  # observations as JSON, in the order in which they finish


def executor(name: str, workers: int = 1) -> Execute | None:
    """`local`: this process, or `workers` processes beside it; `ray` or `ray://host:port`: a Ray cluster.

    None means one after another in this process, with the model that is loaded already.

    Raises:
        CalibrationError: there is no executor of that name, or ray is not installed.
    """
    if name == "local":
        return functools.partial(_processes, workers=workers) if workers > 1 else None
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


def _processes(jobs: Sequence[ProbeJob], workers: int) -> Iterator[str]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    threads = max(1, (os.cpu_count() or 1) // workers)
    try:
        yield from parallel(delayed(run_job)(text) for text in _texts(jobs, threads))
    except TerminatedWorkerError:
        raise CalibrationError("a worker process died, for want of memory perhaps: the same call goes on") from None


def _cluster(jobs: Sequence[ProbeJob], address: str | None, workers: int) -> Iterator[str]:
    try:
        import ray
    except ImportError:
        raise CalibrationError("running on Ray needs ray: pip install 'lorasize[ray]'") from None
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    gpus = 1 if jobs and jobs[0].device.startswith("cuda") else 0  # leased, so that no two probes share one
    largest = max((node["Resources"].get("CPU", 1) for node in cast(Any, ray).nodes() if node["Alive"]), default=1)
    cpus = max(1, int(min(largest, os.cpu_count() or 1)) // workers)
    texts = _texts(jobs, cpus)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(run_job)
    pending = [remote.remote(text) for text in texts]
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            yield from ray.get(done)
    finally:
        for job in pending:
            ray.cancel(job, force=True)
