"""The shards of a run made by Ray workers, on one machine or many: the same files as one process makes."""

import importlib.metadata
from pathlib import Path
from typing import Any

from mechreg.run import (
    BATCH_TOKENS,
    SHARD_TOKENS,
    DeviceMap,
    Shard,
    ShardMaker,
    Survey,
    carry_out,
    missing_shards,
)
from mechreg.schema import InputError
from mechreg.spec import Spec


def run_on_ray(
    spec: Spec,
    *,
    out: str | Path | None = None,
    workers: int = 2,
    gpus_per_worker: int | float = 0,
    address: str | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    batch_tokens: int = BATCH_TOKENS,
    shard_tokens: int = SHARD_TOKENS,
    resume: bool = False,
) -> Path:
    """Return the run folder of a spec whose shards Ray workers made, byte for byte what `run_spec` makes.

    Each worker loads a model once and makes shard after shard; one that dies is started again, and its shard is
    made again. The folder must be one that all workers reach by the same path.

    Parameters
    ----------
    spec : Spec
    out : str or Path, optional
    workers : int
    gpus_per_worker : number
        0.5 lets two workers share a GPU; a worker without any computes on the CPU.
    address : str, optional
        Of a running Ray cluster ("auto" finds it); by default workers are started on this machine.
    device, device_map, batch_tokens, shard_tokens, resume
        As for `run_spec`; a device map splits a model over the GPUs of its worker.

    Raises
    ------
    InputError
        Ray is not installed or the cluster cannot be had, and as `run_spec`.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("engine 'ray' needs the library: pip install 'mechreg[ray]'.") from error
    for name, value in (("workers", workers), ("gpus_per_worker", gpus_per_worker)):
        if value < (1 if name == "workers" else 0):
            raise InputError(f"{name} must be at least {1 if name == 'workers' else 0}; got {value}.")

    def make(run: Path, survey: Survey) -> dict[str, float]:
        began = _begin(ray, address, workers)
        try:
            # -1: as often as it takes; shards that are there are not made again.
            actor = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, max_restarts=-1, max_task_retries=-1)(
                _Worker
            )
            pool = [actor.remote(str(run.resolve()), device, device_map) for _ in range(workers)]
            _in_turn(
                ray,
                pool,
                [("prepare", (name, survey, batch_tokens, shard_tokens)) for name in spec.models],
            )
            _in_turn(ray, pool, [("make", (shard,)) for shard in missing_shards(run)])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from error
        finally:
            if began:
                ray.shutdown()
        return {}

    # A cluster's devices are not this machine's.
    here = {"device": device, "device_map": device_map} if address is None else {}
    return carry_out(spec, make, out=out, resume=resume, **here)  # type: ignore[arg-type]


class _Worker:
    """What runs in a Ray actor."""

    def __init__(self, run: str, device: str, device_map: DeviceMap | None) -> None:
        self.maker = ShardMaker(run, device=device, device_map=device_map)

    def prepare(self, name: str, survey: Survey, batch_tokens: int, shard_tokens: int) -> None:
        self.maker.prepare(name, survey, batch_tokens=batch_tokens, shard_tokens=shard_tokens)

    def make(self, shard: Shard) -> None:
        self.maker.make(shard)


def _begin(ray: Any, address: str | None, workers: int) -> bool:
    """Connect to Ray; return whether it is ours to end."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if address is None:
        options["num_cpus"] = workers  # also where there are fewer: a worker is a process, not a core
    else:
        options = {"address": address, "log_to_driver": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Ray {importlib.metadata.version('ray')} cannot be had at address={address!r}: {error}"
        ) from error
    return True


def _in_turn(ray: Any, pool: list[Any], tasks: list[tuple[str, tuple]]) -> None:
    """Give every worker a task, and the next one to whichever is done."""
    waiting = list(reversed(tasks))
    busy: dict[Any, Any] = {}
    idle = list(pool)
    while waiting or busy:
        while waiting and idle:
            method, arguments = waiting.pop()
            worker = idle.pop()
            busy[getattr(worker, method).remote(*arguments)] = worker
        done, _ = ray.wait(list(busy), num_returns=1)
        for task in done:
            ray.get(task)  # raises what the worker raised
            idle.append(busy.pop(task))
