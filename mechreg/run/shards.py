"""Shards: a model's tokens are cut into shards of whole documents, and each is made by itself, once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechreg import store
from mechreg.frames import by_hook, norm_frame, stacked
from mechreg.models import DeviceMap, load_model
from mechreg.norms import BATCH_TOKENS, window_norms
from mechreg.run.preflight import Survey, is_summable, require_rows
from mechreg.run.records import identity_of, new_record, record_of_spec
from mechreg.run.refit_stored import sums_of_shard
from mechreg.run.sample import is_large, sampled_documents, shards_of_sample
from mechreg.run.tokens import covariates_of, cut, stream_tokens
from mechreg.run.top_tokens import top_of_shard
from mechreg.schema import InputError
from mechreg.spec import Spec

SHARD_TOKENS = 100_000


class Shard(NamedTuple):
    """A shard of a run: the model's name, and the shard's number in the order of the corpus."""

    model: str
    number: int


def make_shard(
    run: str | Path,
    shard: Shard | tuple[str, int],
    *,
    device: str = "auto",
    device_map: DeviceMap | None = None,
) -> Path:
    """Return the file of a shard, made now or earlier: the one task that any launcher can hand out.

    The same shard may be made twice, at once or one after the other: the files are the same bytes.

    Parameters
    ----------
    run : str or Path
        A run folder whose tokens are written.
    shard : Shard
        One of `missing_shards`.
    device, device_map : optional
        As for `load_model`.

    Raises
    ------
    InputError
        No such shard, or the model is not the one that the run was begun with.
    """
    return ShardMaker(run, device=device, device_map=device_map).make(Shard(*shard))


def missing_shards(run: str | Path) -> list[Shard]:
    """Return, in order, the shards of a run that lack a file.

    Raises
    ------
    InputError
        The tokens of a model have not been counted yet, so that its shards are not known.
    """
    folder, spec = Path(run), store.stored_spec(Path(run))
    missing = []
    for name in spec.models:
        record = record_of_spec(folder, name)
        if record is None or not _tokens_are_there(folder, record):
            raise InputError(
                f"The shards of {name!r} are not known yet: some of its tokens are missing. `mechreg run` makes them."
            )
        missing += [
            Shard(record["name"], index)
            for index in range(record["plan"]["shards"])
            if not all(map(store.is_there, files_of_shard(folder, spec, record, index).every))
        ]
    return missing


class ShardMaker:
    """Makes shards of a run, the model of the last one kept in memory."""

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        device_map: DeviceMap | None = None,
        progress: bool = True,
    ) -> None:
        self.run = Path(run)
        self.spec = store.stored_spec(self.run)
        self.device, self.device_map = device, device_map
        self.progress = progress
        self._loaded: tuple[str, Any] | None = None

    def prepare(
        self, name: str, survey: Survey, *, batch_tokens: int = BATCH_TOKENS, shard_tokens: int = SHARD_TOKENS
    ) -> list[Shard]:
        """Return a model's shards, planned now or earlier, after its tokens are written."""
        model = self._model(name)
        sizes = {"batch_tokens": batch_tokens, "shard_tokens": shard_tokens}
        record = new_record(model, name, self.spec, survey, **sizes)
        before = store.read_record(self.run, record["name"])
        if before is not None and _tokens_are_there(self.run, record | {"plan": before.get("plan")}):
            record["plan"] = before.get("plan")
        store.record_model(self.run, record)
        if "plan" not in record:
            record["plan"] = self._write_tokens(model, record, survey, shard_tokens)
            store.record_model(self.run, record)
        return [Shard(record["name"], index) for index in range(record["plan"]["shards"])]

    def make(self, shard: Shard) -> Path:
        """Return the first file of a shard, after all of its files are written."""
        record = store.read_record(self.run, shard.model)
        if record is None or not 0 <= shard.number < record.get("plan", {}).get("shards", 0):
            raise InputError(f"{str(self.run)!r} has no shard {shard.number} of {shard.model!r}.")
        files = files_of_shard(self.run, self.spec, record, shard.number)
        # A process killed between a shard's files leaves some of them, which are not written again.
        missing = {path for path in files.every if not store.is_there(path)}
        if missing:
            tokens, norms, covariates = self._passes(record, shard.number)
            about: dict[str, Any] = {"model": shard.model, "covariates": covariates}
            if files.sums in missing:
                frames = [norm_frame(tokens, norms[hook], hook=hook, **about) for hook in norms]
                sums = sums_of_shard(stacked(frames), tokens, self.spec, record)
                with store.committed(files.sums) as temporary:
                    sums.save(temporary)
            kept = np.full(len(tokens), True)
            if self.spec.keep == "moments":
                sample = sampled_documents(tokens["doc"], record["plan"]["shards"])
                kept = tokens["doc"].isin(sample).to_numpy()
            if files.top in missing:
                top = top_of_shard(norms, tokens, model=shard.model, most=self.spec.top_tokens)
                store.write_table_shard(top, files.top)
            for hook, path in files.norms.items():
                if path in missing:
                    values = {measure: array[..., kept] for measure, array in norms[hook].items()}
                    store.write_norm_shard(values, tokens[kept], path, hook=hook, **about)
        return files.every[0]

    def _passes(
        self, record: dict[str, Any], index: int
    ) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]], list[str]]:
        """Return a shard's tokens, their measures by hook, and the covariates found in the same passes."""
        model = self._model(record["spec_name"], expected=record)
        tokens = store.read_token_shard(store.shard_path(self.run, "tokens", record, index))
        values = window_norms(
            model,
            tokens,
            hooks=self.spec.hooks,
            measures=self.spec.measures,
            batch_tokens=record["config"]["batch_tokens"],
            surprisal="surprisal" in covariates_of(self.spec.formula),
            progress=self.progress,
        )
        covariates = [name for name in values if name == "surprisal"]
        tokens = tokens.assign(**{name: values.pop(name) for name in covariates})
        return tokens, by_hook(values), covariates

    def _write_tokens(self, model: Any, record: dict[str, Any], survey: Survey, size: int) -> dict[str, Any]:
        """Return the plan of a model's shards, after its tokens are written: the corpus read as a stream."""
        problems: list[dict[str, str]] = []

        def pieces() -> Iterator[pd.DataFrame]:
            for tokens, found in stream_tokens(model, self.spec, survey.columns, survey.read):
                if tokens is not None:
                    yield tokens
                problems.extend({str(k): v for k, v in row.items()} for row in found.to_dict("records"))

        counts = {"tokens": 0, "windows": 0, "longest": 0, "documents": 0}
        index = -1
        for index, tokens in enumerate(cut(pieces(), size)):
            path = store.shard_path(self.run, "tokens", record, index)
            if not store.is_there(path):
                store.write_token_shard(tokens, path)
            counts["tokens"] += len(tokens)
            counts["windows"] += int((tokens["position"] == 0).sum())
            counts["longest"] = max(counts["longest"], int(tokens["position"].max()) + 1)
            counts["documents"] += tokens["doc"].nunique()
        require_rows(self.spec, longest=counts["longest"], blocks=record["facts"]["blocks"])
        streamed = is_summable(self.spec) and is_large(self.spec, record, counts["tokens"])
        return {"shards": index + 1, **counts, "streamed": streamed, "problems": problems}

    def same_model(self, record: dict[str, Any]) -> Any:
        """Return the model that a record is of, loaded unless it is the one in memory; only its device may differ."""
        model = self._model(record["spec_name"])
        identity = {key: value for key, value in identity_of(model).items() if key != "device"}
        store.require_same_model(self.run, record["name"], identity)
        return model

    def _model(self, name: str, *, expected: dict[str, Any] | None = None) -> Any:
        """Return a model of the spec, loaded unless it is the one in memory; ``expected`` is checked on loading."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # two do not fit where one does
            model = load_model(
                name,
                backend=self.spec.backend,
                processing=self.spec.processing,
                dtype=self.spec.dtype,
                device=self.device,
                device_map=self.device_map,
                allow_pickle=self.spec.allow_pickle,
            )
            if expected is not None:
                store.require_same_model(self.run, expected["name"], identity_of(model))
            self._loaded = (name, model)
        return self._loaded[1]


class ShardFiles(NamedTuple):
    """The files that a shard consists of."""

    norms: dict[str, Path]  # by hook
    sums: Path | None
    top: Path | None  # the tokens with the largest values

    @property
    def every(self) -> list[Path]:
        """All of them."""
        return [*self.norms.values(), *filter(None, (self.sums, self.top))]


def files_of_shard(run: Path, spec: Spec, record: dict[str, Any], index: int) -> ShardFiles:
    """Return the files that a shard consists of, written or not."""
    has_norms = spec.keep == "norms" or index in shards_of_sample(record["plan"]["shards"])
    place = partial(store.shard_path, run, record=record, index=index)
    return ShardFiles(
        norms={hook: place("norms", part=hook) for hook in spec.hooks} if has_norms else {},
        sums=place("moments") if record["plan"]["streamed"] else None,
        top=place("top") if spec.top_tokens else None,
    )


def _tokens_are_there(run: Path, record: dict[str, Any]) -> bool:
    """Return whether a model's shards are planned and the tokens of all of them are on the disk."""
    shards = (record.get("plan") or {}).get("shards", 0)
    return shards > 0 and all(
        store.is_there(store.shard_path(run, "tokens", record, index)) for index in range(shards)
    )
