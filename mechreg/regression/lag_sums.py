"""The coefficient table from one streaming pass over sums of products, for data larger than memory."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from errno import EINVAL
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from mechreg.formulas import formula_columns
from mechreg.outside import any_frames
from mechreg.regression.blocks import (
    MAX_SUMMED_LAGS,
    Blocks,
    Coordinates,
    choose_coordinates,
    merge_blocks,
    sum_blocks,
    within_clusters,
)
from mechreg.regression.clusters import DocumentSums, sums_of
from mechreg.regression.design import NeedsAllRows, Terms, terms_of, united_cells
from mechreg.regression.evaluation import evaluate, require_finite
from mechreg.regression.fixed_effects import require_effects
from mechreg.regression.residuals import residual_statistics, summed_products
from mechreg.regression.results import (
    Adjust,
    Covariance,
    coefficient_frame,
    covariance_of,
    require_table_options,
    statistics_frame,
)
from mechreg.regression.rows import Rows, absorbed_parts, read_groups, without_intercept
from mechreg.regression.solve import Fit, solve
from mechreg.schema import (
    DEFAULT_COV,
    GROUP_KEYS,
    TOKEN_KEYS,
    Cov,
    InputError,
    require,
    require_by,
    require_one_processing,
    require_whole_number,
)
from mechreg.words import count, first_line, keys_in_words

SumsCov = Literal[Cov, "cr0"]
# Raise it when older files would be misread.
FILE_VERSION = 2
_OPTIONS = ("formula", "cluster", "max_lag", "by", "effects")
_COUNTS = ("n", "longest", "has_gaps", "within", "across")


class _Group(NamedTuple):
    """What is known of one (model, hook, layer[, head])."""

    keys: dict[str, Any]
    depth: float
    n_dropped: int
    n_sinks: int
    seen: pd.DataFrame = pd.DataFrame()  # a row of every cell
    terms: Terms | None = None  # where they cannot be made from ``seen``
    blocks: Blocks | None = None  # until there is a complete row


class LagSums:
    """Sums of products by document and group: the tables of `fit_lagged` without a second look at the rows.

    Parameters
    ----------
    formula, by, effects
        As for `fit_lagged`. `update` takes the effect "doc" alone: a document is whole there, and levels of others are
        known only when all rows are.
    cluster : str, optional
        The column of clusters; None for none.
    max_lag : int, optional
        Products are summed with those of so many tokens before, within windows: 1 for all statistics, 0 for hc0 and
        hc1; Newey-West needs its lags. None keeps none, is faster, and leaves those of the residuals NaN.

    Notes
    -----
    What is kept does not grow with the rows: (p + 2) (p + 3) / 2 numbers a document and group, p the regressors (for
    each category in the document), and (max_lag + 1) squares of that a group.

    Examples
    --------
    >>> from mechreg.lags import add_lags
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c"], 50),
    ...                       "window": 0, "position": np.tile(range(50), 3), "norm": rng.lognormal(size=150)})
    >>> sums = LagSums("log_norm ~ lag1")
    >>> for _, shard in add_lags(norms).groupby("doc"):
    ...     sums.update(shard)
    >>> sums.coefficients()[["term", "n", "n_docs", "n_dropped", "cov_type"]].values.tolist()[1]
    ['lag1', 144, 3, 6, 'crv3']
    """

    def __init__(
        self,
        formula: str = "log_norm ~ lag1 + lag2",
        *,
        cluster: str | None = "doc",
        max_lag: int | None = 1,
        by: str | Sequence[str] = (),
        effects: str | Sequence[str] = (),
    ) -> None:
        require_whole_number(0 if max_lag is None else max_lag, name="max_lag", least=0, most=MAX_SUMMED_LAGS)
        self.formula, self.cluster, self.max_lag = formula, cluster, max_lag
        self.by = require_by(by, who="LagSums")
        self.effects = require_effects(effects)
        self.columns = formula_columns(formula)
        self._most_products: int | None = None
        self._groups: dict[tuple, _Group] = {}
        self._solved: list[Fit] | None = None

    @classmethod
    @any_frames
    def from_frame(
        cls,
        lagged: pd.DataFrame,
        formula: str = "log_norm ~ lag1 + lag2",
        *,
        most_products: int | None = None,
        **options: Any,
    ) -> "LagSums":
        """Return the sums over one frame, which is all there will be: any formula, rows in any order.

        ``doc``, ``window`` and ``position`` may be missing if nothing asks for them; ``options`` are the class's.
        """
        sums = cls(formula, **options)
        sums._most_products = most_products
        sums._add(lagged, whole=True)
        return sums

    @any_frames
    def update(self, lagged: pd.DataFrame | Mapping[str, Any]) -> None:
        """Add whole documents.

        Parameters
        ----------
        lagged : pandas.DataFrame or mapping
            Columns as for `fit_lagged`, or arrays and single values by their names; each document once.

        Raises
        ------
        SchemaError, InputError
            A missing column, a document that came before, a formula that needs all rows at once.
        NumericalError
            Infinite values. Nothing of a refused update is added.
        """
        frame = lagged if isinstance(lagged, pd.DataFrame) else pd.DataFrame(dict(lagged))
        require(frame, TOKEN_KEYS, who="LagSums")
        self._add(frame, whole=False)

    def merge(self, *others: "LagSums") -> "LagSums":
        """Return the sums over the documents of this and the others, which have the same options, in any order."""
        merged = LagSums(**{key: getattr(self, key) for key in _OPTIONS})
        merged._groups = dict(self._groups)
        for other in others:
            for option in _OPTIONS:
                ours, theirs = getattr(self, option), getattr(other, option)
                if ours != theirs:
                    raise InputError(f"merge needs the same {option}; got {ours!r} and {theirs!r}.")
            for key, group in other._groups.items():
                merged._groups[key] = merged._joined(merged._groups.get(key), group)
        return merged

    def coefficients(
        self,
        *,
        cov: SumsCov = DEFAULT_COV,
        adjust: Adjust = "bh",
        hac_lags: int | None = None,
        conf_level: float = 0.95,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the coefficient frame, equal to that of `fit_lagged`, whose options and errors it has.

        ``cov`` may also be "cr0", without a small-sample factor, and not "hc2" or "hc3", which need every row.
        """
        require_table_options(cov, get_args(SumsCov), adjust, hac_lags, conf_level, seed)
        covariances = self.covariances(cov, hac_lags)
        return coefficient_frame(
            self.solve(), covariances, adjust=adjust, conf_level=float(conf_level), seed=seed, by=self.by
        )

    def covariances(self, cov: SumsCov, hac_lags: int | None = None) -> list[Covariance]:
        """Return the covariance of every group, in the order of `solve`."""
        asked = partial(covariance_of, cov=cov, cluster=self.cluster, hac_lags=hac_lags)
        return [asked(fit, summed_products(fit)) for fit in self.solve()]

    def statistics(self) -> pd.DataFrame:
        """Return the statistics frame, equal to that of `fit_lagged`."""
        residuals = [residual_statistics(fit, summed_products(fit)) for fit in self.solve()]
        return statistics_frame(self.solve(), residuals, by=self.by)

    def document_sums(self) -> list[DocumentSums]:
        """Return each document's (or other cluster's) sums in every group, in the order of the coefficient frame."""
        if self.cluster is None:
            raise InputError("document_sums needs clusters; make LagSums with cluster='doc'.")
        return [sums_of(fit) for fit in self.solve()]

    def save(self, path: str | Path) -> Path:
        """Write everything to a file (npz) and return its path; functions of all rows (splines) cannot be written."""
        entries: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for number, group in enumerate(self._groups.values()):
            if group.terms is not None:
                raise InputError(f"save cannot keep what {self.formula!r} learned; write the tables.")
            arrays[f"{number}.seen"] = np.frombuffer(group.seen.to_parquet(), np.uint8)
            known = group._asdict()
            entry: dict[str, Any] = {key: known[key] for key in ("keys", "depth", "n_dropped", "n_sinks")}
            if group.blocks is not None:
                values = group.blocks._asdict() | group.blocks.coordinates._asdict()
                entry["blocks"] = {key: values[key] for key in _COUNTS}
                for key in ("labels", "docs"):
                    values[key] = values[key].to_numpy(str if values[key].dtype == "str" else None)
                arrays |= {
                    f"{number}.{key}": held for key, held in values.items() if isinstance(held, np.ndarray)
                }
            entries.append(entry)
        options = {key: getattr(self, key) for key in _OPTIONS}
        about = {"version": FILE_VERSION, **options, "groups": entries}
        with open(path, "wb") as file:  # a path would be given the ending .npz
            np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "LagSums":
        """Return what `save` wrote; refuse another file, a damaged one, and one of another version."""
        try:
            # Opened here, because numpy would leave a damaged file open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays.pop("about")))
            if about["version"] == FILE_VERSION:
                return cls._restored(about, arrays)
        except Exception as error:  # zip, zlib, numpy, JSON and Arrow have errors of their own
            if isinstance(error, OSError) and error.errno not in (None, EINVAL):  # not about the content
                raise
            raise InputError(
                f"{Path(path).name!r} is not a file that LagSums.save wrote ({first_line(error)}); make it again."
            ) from error
        raise InputError(f"{Path(path).name!r} is of another version of mechreg; make it again.")

    @classmethod
    def _restored(cls, about: dict[str, Any], arrays: dict[str, Any]) -> "LagSums":
        sums = cls(**{key: about[key] for key in _OPTIONS})
        for number, entry in enumerate(about["groups"]):
            prefix = f"{number}."
            own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            seen = pd.read_parquet(io.BytesIO(own.pop("seen").tobytes()))
            blocks = None
            if "blocks" in entry:
                for key in ("labels", "docs"):
                    own[key] = pd.Index(own[key], dtype="int64" if own[key].dtype.kind == "i" else "str")
                coordinates = Coordinates(own.pop("shift"), own.pop("basis"))
                blocks = Blocks(coordinates=coordinates, **own, **entry["blocks"])
            counts = {key: entry[key] for key in ("keys", "depth", "n_dropped", "n_sinks")}
            sums._groups[tuple(entry["keys"].values())] = _Group(**counts, seen=seen, blocks=blocks)
        return sums

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups)

    def __repr__(self) -> str:
        rows = sum(group.blocks.n for group in self._groups.values() if group.blocks is not None)
        return f"LagSums({self.formula!r}: {count(len(self), 'group')}, {count(rows, 'row')})"

    def _add(self, frame: pd.DataFrame, *, whole: bool) -> None:
        if not whole and not {*self.effects} <= {"doc"}:
            raise NeedsAllRows(
                f"The effects {list(self.effects)} need all rows at once, and update sees a part; use "
                "effects=('doc',), or LagSums.from_frame or fit_lagged on one frame."
            )
        needed = [] if self.cluster is None else [self.cluster]
        require(frame, (*GROUP_KEYS, *self.columns, *self.by, *self.effects, *needed), who="LagSums")
        groups = dict(self._groups)
        for rows in self.rows_of(frame):
            key = tuple(rows.keys.values())
            groups[key] = self._joined(groups.get(key), self._summed(rows, groups.get(key), whole=whole))
        require_one_processing({group.keys["model"] for group in groups.values()}, who="The regression")
        self._groups, self._solved = groups, None

    def _summed(self, rows: Rows, known: _Group | None, *, whole: bool) -> _Group:
        """Return the sums over the rows of one group in one frame."""
        nothing = _Group(rows.keys, rows.depth, rows.n_dropped, rows.n_sinks)
        if not len(rows.layout.cluster):
            return nothing
        parts = absorbed_parts(self.formula, rows, whole=whole)
        require_finite(zip(parts.names, parts.values, strict=True), where=rows.where)
        before = None if known is None else known.blocks
        if before is not None and before.n >= parts.values.shape[1]:
            coordinates = before.coordinates
        else:  # the better choice, from more rows
            coordinates = choose_coordinates(parts.values, whole=whole)
        add = partial(sum_blocks, max_lag=self.max_lag, most_products=self._most_products)
        blocks = add(parts.values, parts.cell, rows.layout, coordinates)
        return nothing._replace(seen=parts.seen, terms=parts.learned, blocks=blocks)

    def _joined(self, first: _Group | None, second: _Group) -> _Group:
        if first is None:
            return second
        full = second if first.blocks is None else first
        full = full._replace(
            n_dropped=first.n_dropped + second.n_dropped, n_sinks=first.n_sinks + second.n_sinks
        )
        if first.blocks is None or second.blocks is None:
            return full
        where = keys_in_words(first.keys)
        if first.terms is not None or second.terms is not None:
            raise InputError(f"{self.formula!r} learned from one frame: nothing can be added in {where}.")
        again = first.blocks.docs.intersection(second.blocks.docs)
        if len(again):
            raise InputError(
                f"LagSums needs every document whole and once; document {again[0]} of {where} came before."
            )
        united = partial(united_cells, self.formula, first.seen, second.seen)
        seen, cell_of_second = evaluate(united, self.formula, where=where)
        blocks = merge_blocks(first.blocks, second.blocks, cell_of_second=cell_of_second)
        return full._replace(seen=seen, blocks=blocks)

    def rows_of(self, frame: pd.DataFrame) -> Iterator[Rows]:
        """Yield the groups of a frame, as the sums take them."""
        return read_groups(frame, self.columns, cluster=self.cluster, by=self.by, effects=self.effects)

    def solve(self) -> list[Fit]:
        """Return all groups solved: models and hooks in the order in which they came, then layers and heads."""
        if self._solved is not None:
            return self._solved
        if not self._groups:
            raise InputError("LagSums has no rows yet; call update first.")
        models, hooks = (list(dict.fromkeys(key[i] for key in self._groups)) for i in (0, 1))
        order = sorted(self._groups, key=lambda key: (models.index(key[0]), hooks.index(key[1]), *key[2:]))
        fits = []
        for group in map(self._groups.__getitem__, order):
            where = keys_in_words(group.keys)
            if group.blocks is None:
                several = f", two or more of each {' and each '.join(self.effects)}" if self.effects else ""
                raise InputError(
                    f"The regression needs complete rows{several}; in {where} none of {group.n_dropped} is; "
                    "give more or longer documents, or fewer lags."
                )
            terms = group.terms
            if terms is None:
                terms = terms_of(self.formula, group.seen)
                terms = without_intercept(terms) if self.effects else terms
            solution = solve(group.blocks, terms, where=where, n_dropped=group.n_dropped)
            known = group.keys, group.depth, group.n_dropped, group.n_sinks
            fits.append(Fit(*known, group.blocks, solution, where))
        self._solved = fits
        return fits


def within_documents(sums: LagSums) -> LagSums:
    """Return sums with documents' levels taken off, as of ``effects="doc"``, without a look at the rows.

    They are those of numbers alone, clustered by document; the residuals' statistics are not in them.
    """
    if not isinstance(sums, LagSums):
        raise InputError(f"within_documents needs LagSums; got {type(sums).__name__}.")
    within = LagSums(sums.formula, max_lag=None, by=sums.by, effects="doc")
    for key, group in sums._groups.items():
        blocks, is_plain = group.blocks, group.terms is None and len(group.seen) == 1
        if is_plain:
            (weights,) = terms_of(sums.formula, group.seen).weights
            is_plain = np.array_equal(weights, np.eye(len(weights)))
        if blocks is None or sums.cluster != "doc" or sums.effects or not is_plain:
            raise InputError(
                f"within_documents needs sums by document, of numbers, without effects; those of {sums.formula!r} are "
                "not. Make them with effects='doc'."
            )
        within._groups[key] = group._replace(blocks=within_clusters(blocks))
    return within
