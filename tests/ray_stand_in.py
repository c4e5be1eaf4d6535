"""A stand-in for Ray's calls: what workers do is done at once, and some tasks kill them."""

from types import SimpleNamespace
from typing import Any


class Died(Exception):
    """As `ray.exceptions.RayActorError`."""


class StandIn:
    """What `mechreg.cluster` asks of the library."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.exceptions = SimpleNamespace(RayActorError=Died)

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Any) -> None:
        if task.error:
            raise task.error


class Worker:
    """An actor; ``kills`` says how many of its kind each task kills."""

    def __init__(self, ray: StandIn, kills: dict[int, int]) -> None:
        self.ray, self.kills = ray, kills
        self.make = SimpleNamespace(remote=self._make)

    def _make(self, number: int) -> Any:
        if self.kills.get(number, 0) > 0:
            self.kills[number] -= 1
            return _Task(Died("the worker died"))
        self.ray.made.append(number)
        return _Task(None)


class _Task:
    def __init__(self, error: Exception | None) -> None:
        self.error = error
