"""A stand-in for Ray: what workers do is done at once, and those that die live on as often as Ray was told."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Died(Exception):
    """As `ray.exceptions.RayActorError`; a method that raises it kills its worker."""


class StandIn:
    """What `mechreg.cluster` asks of the library; ``started`` counts processes of workers."""

    def __init__(self) -> None:
        self.started = 0
        self.exceptions = SimpleNamespace(RayActorError=Died)

    def remote(self, **options: Any) -> Callable[[type], SimpleNamespace]:
        def actor(kind: type) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *values: _Actor(self, kind, values, options))

        return actor

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Any) -> None:
        if task.error:
            raise task.error


class _Actor:
    """As Ray's: one that dies is started anew from its arguments, and a task is tried again on that one."""

    def __init__(self, ray: StandIn, kind: type, values: tuple, options: dict[str, Any]) -> None:
        self._ray, self._start = ray, lambda: kind(*values)
        self._restarts, self._retries = options.get("max_restarts", 0), options.get("max_task_retries", 0)
        self._worker = self._started()

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *values: _Task(self._error(method, values)))

    def _started(self) -> Any:
        self._ray.started += 1
        return self._start()

    def _error(self, method: str, values: tuple) -> Exception | None:
        """Return what came of a task in the end; what it raises itself is not tried again."""
        error: Exception = Died("the worker is dead")
        for _ in range(1 + self._retries):
            try:
                if self._worker is not None:
                    getattr(self._worker, method)(*values)
                    return None
            except Died as death:
                error, self._worker = death, None
                if self._restarts:  # -1 is without end
                    self._restarts -= 1
                    self._worker = self._started()
            except Exception as raised:
                return raised
        return error


class _Task:
    """What `wait` and `get` take."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
