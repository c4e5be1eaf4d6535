"""The shards of a run made by Ray workers, on one machine or many: the same files as one process makes."""

import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

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
from mechreg.schema import InputError, require_number, require_whole_number
from mechreg.spec import Spec

DEATHS = 3  # of workers by one shard, before it is given up


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

    Each worker loads a model once and makes shard after shard; Ray starts one that dies again, and it makes its shard
    again. The folder must be one that all workers reach by the same path.

    Parameters
    ----------
    gpus_per_worker : number
        0.5 lets two workers share a GPU; a worker without any computes on the CPU.
    address : str, optional
        Of a running Ray cluster ("auto" finds it); by default workers are started on this machine.
    spec, out, device, device_map, batch_tokens, shard_tokens, resume
        As for `run_spec`; a device map splits a model over the GPUs of its worker.

    Raises
    ------
    InputError
        Ray is not installed, its cluster does not answer, or a shard killed three workers; and as `run_spec`.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("engine 'ray' needs the library: pip install 'mechreg[ray]'.") from error
    require_whole_number(workers, name="workers")
    require_number(gpus_per_worker, name="gpus_per_worker", least=0)

    def make(run: Path, survey: Survey) -> dict[str, float]:
        began = _begin(ray, address, workers)
        try:
            pool = _hired(ray, workers, gpus_per_worker, (str(run.resolve()), device, device_map))
            sizes = (survey, batch_tokens, shard_tokens)
            models = [_Task(f"The tokens of {name!r}", "prepare", (name, *sizes)) for name in spec.models]
            _in_turn(ray, pool, models)
            missing = [_Task(f"Shard {s.number} of {s.model!r}", "make", (s,)) for s in missing_shards(run)]
            _in_turn(ray, pool, missing)
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
        self.maker = ShardMaker(run, device=device, device_map=device_map, progress=False)

    def prepare(self, name: str, survey: Survey, batch_tokens: int, shard_tokens: int) -> None:
        self.maker.prepare(name, survey, batch_tokens=batch_tokens, shard_tokens=shard_tokens)

    def make(self, shard: Shard) -> None:
        self.maker.make(shard)


class _Task(NamedTuple):
    """What a worker is to do, and what it is called."""

    name: str
    method: str
    arguments: tuple[Any, ...]


def _begin(ray: Any, address: str | None, workers: int) -> bool:
    """Connect to Ray; return whether it is ours to end."""
    if ray.is_initialized():
        return False
    # As many CPUs as workers also where there are fewer: a worker is a process, not a core.
    own = {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, **(own if address is None else {"address": address}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Ray {importlib.metadata.version('ray')} does not answer at address={address!r}: {error}"
        ) from error
    return True


def _hired(ray: Any, workers: int, gpus_per_worker: int | float, about: tuple[Any, ...]) -> list[Any]:
    """Return so many workers; Ray starts one that dies anew and gives it its task again, up to the last death."""
    lives = {"max_restarts": -1, "max_task_retries": DEATHS - 1}
    actor = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, **lives)(_Worker)
    return [actor.remote(*about) for _ in range(workers)]


def _in_turn(ray: Any, pool: list[Any], tasks: list[_Task]) -> None:
    """Give each worker a task, then the next to whichever is free; say at the end which task killed its workers."""
    waiting, idle = list(reversed(tasks)), list(pool)
    busy: dict[Any, tuple[Any, _Task]] = {}
    given_up: tuple[_Task, Exception] | None = None
    while waiting or busy:
        while waiting and idle:
            task, worker = waiting.pop(), idle.pop()
            busy[getattr(worker, task.method).remote(*task.arguments)] = (worker, task)
        (done,), _ = ray.wait(list(busy), num_returns=1)
        worker, task = busy.pop(done)
        idle.append(worker)
        try:
            ray.get(done)  # raises what the worker raised
        except ray.exceptions.RayActorError as error:
            given_up = given_up or (task, error)
    if given_up is not None:
        task, died = given_up
        why = " ".join(str(died).split())
        raise InputError(
            f"{task.name} killed {DEATHS} workers, one after the other ({why[:300]}); if memory was short, give fewer "
            "workers or --batch-tokens. What was made is kept, and the same command continues."
        ) from died
