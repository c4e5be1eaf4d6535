"""A run folder as it is read: what is asked for by model, hook, layer and source, and nothing else."""

import contextlib
import hashlib
import tomllib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds

from mechreg.frames import stacked
from mechreg.outside import for_page
from mechreg.schema import InputError, one_or_many, require_names, require_option, require_path
from mechreg.spec import Spec, parse_spec, write_spec
from mechreg.store.files import is_there, read_table, readable
from mechreg.store.folder import checked_record, damaged_shards, manifest_files, require_hash
from mechreg.store.shards import read_norm_shard, read_token_shard, shard_path


def open_run(run: str | Path) -> "Run":
    """Return the run in a folder; nothing is read before it is asked for.

    Parameters
    ----------
    run : str or Path
        The folder that `run_spec` returned; a run that has not ended shows the shards that are there.

    Raises
    ------
    InputError
        Not a run folder.

    Examples
    --------
    >>> import tempfile
    >>> from mechreg import Spec, run_spec
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=tempfile.mkdtemp(), progress=False)
    >>> run = open_run(folder)
    >>> run.models, run.hooks
    (['mini-s'], ['attn_out'])
    >>> run.norms(layers=[3])["layer"].unique().tolist()
    [3]
    """
    folder = require_path(run, name="run")
    _spec_file(folder)
    return Run(folder)


def stored_spec(run: Path) -> Spec:
    """Return the spec of a run folder; keys missing from the file have their defaults."""
    file = _spec_file(run)
    written = None
    with contextlib.suppress(InputError):  # a damaged manifest is reported where it is needed
        written = manifest_files(run).get(file.name)
    with readable(file):
        data = file.read_bytes()
    try:
        if written not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("it is not the one that the run ended with")
        return parse_spec(data.decode())
    except ValueError as error:
        raise InputError(
            f"The spec.toml of {str(run)!r} is damaged ({str(error).rstrip('.')}); put the spec that the run was made "
            "from in its place."
        ) from error


def _spec_file(run: Path) -> Path:
    if not is_there(file := run / "spec.toml"):
        raise InputError(f"{str(run)!r} is not a run folder: it has no spec.toml. Run `mechreg run` first.")
    return file


class Run:
    """A run folder. Made by `open_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {', '.join(self.models)}; {', '.join(self.hooks)})"

    def _repr_html_(self) -> str:
        rows = []
        for name, record in self.records.items():
            facts, plan = record["facts"], record.get("plan") or {}
            made = max(len(self.shards(kind, name, self.hooks[0])) for kind in ("norms", "moments"))
            rows.append(
                {"model": name}
                | {key: facts.get(key, "") for key in ("blocks", "d_model", "parameters")}
                | {key: plan.get(key, "") for key in ("documents", "tokens")}
                | {"shards made": f"{made} of {plan.get('shards', 'so many')}"}
            )
        table = pd.DataFrame(rows).to_html(index=False, border=0)
        ended = (self.path / "coefficients.parquet").exists()
        about = "" if ended else "<p>The run has not ended: the same command continues it.</p>"
        return f"<p><code>{for_page(repr(self))}</code></p>{table}{about}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec, every key of it: one that the file does not have has its default."""
        return tomllib.loads(write_spec(stored_spec(self.path)))

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """What is known of every model: config, facts, and the plan of its shards, in the order of the spec."""
        found = {path: checked_record(path) for path in (self.path / "models").glob("*.json")}
        order = self.spec["models"]
        for path, record in found.items():
            if record["spec_name"] not in order:
                raise InputError(
                    f"{str(path)!r} is of the model {record['spec_name']!r}, which the run's spec does not have: "
                    f"{order}; remove it, and the same `mechreg run` continues."
                )
        ordered = sorted(found.values(), key=lambda record: order.index(record["spec_name"]))
        return {record["name"]: record for record in ordered}

    @property
    def models(self) -> list[str]:
        """The models' names, as in all frames."""
        return list(self.records)

    @property
    def hooks(self) -> list[str]:
        """The hook points."""
        return list(self.spec["hooks"])

    @property
    def coefficients(self) -> pd.DataFrame:
        """The coefficient frame."""
        return self.table("coefficients.parquet")

    @property
    def statistics(self) -> pd.DataFrame:
        """The statistics frame."""
        return self.table("statistics.csv")

    @property
    def top_tokens(self) -> pd.DataFrame:
        """The tokens with the largest values by model, hook, layer and measure, of a run with ``top_tokens``."""
        if not self.spec["top_tokens"]:
            raise InputError(f"{str(self.path)!r} kept no tokens; a spec with top_tokens = 20 does.")
        return self.table("top_tokens.parquet")

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the finished run by the name of its file, held to the checksum in its manifest."""
        path = self.path / name
        if not is_there(path):
            raise InputError(
                f"{str(self.path)!r} has no {name}: the run has not ended. The same command continues it."
            )
        written = manifest_files(self.path).get(name)
        if written is not None:
            require_hash(path, written)
        return read_table(path)

    def norms(
        self,
        *,
        models: Sequence[str] | None = None,
        hooks: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        sources: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return the norm frame of what is asked for; other layers and hooks are not read from the disk.

        Parameters
        ----------
        models, hooks, layers, sources : sequence, optional
            Only these; all by default.

        Raises
        ------
        InputError
            A model, hook, layer or source that the run does not have, or norms that were not kept.
        """
        asked = {"models": models, "hooks": hooks, "layers": layers, "sources": sources}
        parts = list(self.norm_shards(**asked))  # type: ignore[arg-type]
        if not sum(map(len, parts)):
            raise InputError(f"{str(self.path)!r} has no norms of {asked}; it has {self!r}.")
        return stacked(parts, sort=True)

    def norm_shards(
        self,
        *,
        models: Sequence[str] | None = None,
        hooks: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        sources: Sequence[str] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Yield the same, a frame of whole documents at a time: for what does not fit into memory."""
        for name in chosen(models, self.models, name="models"):
            for layer in () if layers is None else one_or_many(layers):
                blocks = self.records[name]["facts"]["blocks"]
                require_option(layer, range(blocks), name=f"layers of {name!r}")
            for hook in chosen(hooks, self.hooks, name="hooks"):
                for path in self.shards("norms", name, hook):
                    yield read_norm_shard(path, layers=layers, sources=sources)

    def tokens(self, *, models: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the token frame of one model, with the document's source and what the formula asked for."""
        names = chosen(models, self.models, name="models")
        if len(names) != 1:
            raise InputError(f"Each model has its own tokens; choose one with models=[...]: {self.models}.")
        return stacked([read_token_shard(path) for path in self.shards("tokens", names[0])], sort=True)

    def dataset(self, model: str, hook: str) -> ds.Dataset:
        """Return the wide shards of a model and hook as a pyarrow dataset: a row a token, a column a layer."""
        require_option(model, self.models, name="model")
        require_option(hook, self.hooks, name="hook")
        return ds.dataset([str(path) for path in self.shards("norms", model, hook)])

    def shards(self, kind: str, model: str, hook: str | None = None) -> list[Path]:
        """Return the files of a kind ("tokens", "norms", "moments", "top") that are there, in the corpus's order."""
        first = shard_path(self.path, kind, self.records[model], 0, hook or "")  # type: ignore[arg-type]
        return sorted(first.parent.glob(first.stem.removesuffix("00000") + "*"))

    def damaged(self) -> list[Path]:
        """Return the shards that are not what was written; reads all of them."""
        return list(damaged_shards(self.path))

    def require_all(self) -> None:
        """Check that every model's record is there, and every shard that the manifest of a finished run lists."""
        known = {record["spec_name"] for record in self.records.values()}
        gone = [f"The record of {name!r}" for name in self.spec["models"] if name not in known]
        shards = (name for name in manifest_files(self.path) if "/" in name)
        gone += [name for name in shards if not (self.path / name).exists()]
        if gone:
            raise InputError(
                f"{gone[0]} of {str(self.path)!r} is gone, the first of {len(gone)}; `mechreg run` with the same spec "
                "and --out makes it again."
            )


def chosen(asked: str | Sequence[str] | None, have: Sequence[str], *, name: str) -> list[str]:
    """Return those of a run's models or hooks that were asked for, all by default."""
    return list(have) if asked is None else require_names(asked, have, name=name, least=0)
