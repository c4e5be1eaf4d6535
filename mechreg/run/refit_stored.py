"""Regressions from stored norms, shard by shard: what the tables of a run larger than memory come from."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from patsy import ModelDesc

from mechreg import store
from mechreg.lags import add_lags
from mechreg.regression import LagSums, formula_columns
from mechreg.regression.results import CLUSTERED
from mechreg.run.preflight import layer_below_lags
from mechreg.schema import InputError, one_or_many, require_option
from mechreg.spec import Spec

# Columns that have one value in a regression.
_OF_A_FIT = {"model", "hook", "layer", "depth"}


def run_moments(
    run: str | Path,
    formula: str | None = None,
    *,
    lags: int | Sequence[int] | None = None,
    skip: int | None = None,
    models: str | Sequence[str] | None = None,
    hooks: str | Sequence[str] | None = None,
    cluster: str | None = "doc",
    max_lag: int | None = 1,
) -> LagSums:
    """Return the sums of a regression over a run's stored norms, read a shard at a time; no model is loaded.

    Parameters
    ----------
    run : str or Path
        A run folder with ``keep = "norms"``.
    formula : str, optional
        The run's own by default; any that `LagSums` takes, of lags, tokens' columns and ``source``.
    lags, skip : optional
        The run's own by default.
    models, hooks : sequence of str, optional
        Only these.
    cluster, max_lag : optional
        As for `LagSums`.

    Raises
    ------
    InputError
        Norms that were not kept, shards that are missing.

    Examples
    --------
    >>> import tempfile
    >>> from mechreg import Spec, run_spec
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=tempfile.mkdtemp(), progress=False)
    >>> run_moments(folder, "log_norm ~ lag1").coefficients()["term"].unique().tolist()
    ['Intercept', 'lag1']
    """
    opened = store.open_run(run)
    spec = opened.spec
    if spec["keep"] != "norms":
        raise InputError(f"{str(run)!r} keeps no norms but those of a sample; run it with keep = 'norms'.")
    formula = spec["formula"] if formula is None else formula
    lags = spec["lags"] if lags is None else one_or_many(lags)
    chosen_models = _chosen(models, opened.models, name="models")
    chosen_hooks = _chosen(hooks, opened.hooks, name="hooks")
    skip = spec["skip"] if skip is None else skip

    def parts() -> Iterable[LagSums]:
        for model in chosen_models:
            for hook in chosen_hooks:
                shards = opened.shards("norms", model, hook)
                if len(shards) != opened.records[model].get("plan", {}).get("shards"):
                    raise InputError(
                        f"Shards of {model!r} are missing in {str(run)!r}; run it again to go on."
                    )
                for norms, tokens in zip(shards, opened.shards("tokens", model), strict=True):
                    sums = LagSums(formula, cluster=cluster, max_lag=max_lag)
                    lagged = lagged_norms(store.read_norm_shard(norms), formula, lags=lags, skip=skip)
                    sums.update(annotated(lagged, partial(store.read_token_shard, tokens), formula))
                    yield sums

    return merged(parts())


def _chosen(asked: str | Sequence[str] | None, have: Sequence[str], *, name: str) -> list[str]:
    """Return those of a run's models or hooks that were asked for, all where none was."""
    chosen = list(have) if asked is None else one_or_many(asked)
    for entry in chosen:
        require_option(entry, have, name=name)
    return chosen


def require_fittable(spec: Spec, documents: int) -> None:
    """Refuse a regression that no corpus of so many documents could have, before any norm is made."""
    if spec.cov in CLUSTERED and spec.cov != "auto" and documents < 2:
        raise InputError(
            f"cov = {spec.cov!r} needs two documents or more; the corpus has {documents}. Use cov = 'auto'."
        )
    for term in ModelDesc.from_formula(spec.formula).rhs_termlist:
        columns = {name for factor in term.factors for name in formula_columns(f"y ~ {factor.code}")[1:]}
        if columns and columns <= _OF_A_FIT:
            raise InputError(
                f"The term {term.name()!r} of {spec.formula!r} is constant in every regression, which is of one "
                "model, hook and layer; leave it out."
            )
        codes = [factor.code.replace(" ", "") for factor in term.factors]
        if codes in (["doc"], ["C(doc)"]) and documents > 1 and spec.cov in ("auto", "crv3", "jackknife"):
            raise InputError(
                f"cov = {spec.cov!r} fits without each document in turn, and {term.name()!r} of {spec.formula!r} "
                "has a column for each; use cov = 'crv1'."
            )


def require_rows(spec: Spec, *, longest: int, blocks: int) -> None:
    """Refuse a formula that no window has a complete row of, once the longest is known; no pass has been made."""
    asked = [re.fullmatch(r"(?:layer_below_)?lag(\d+)", name) for name in formula_columns(spec.formula)]
    lag = max((int(match[1]) for match in asked if match), default=0)
    if longest <= spec.skip + lag:
        raise InputError(
            f"{spec.formula!r} with skip = {spec.skip} needs windows of {spec.skip + lag + 1} tokens or more; the "
            f"longest has {longest}. Give longer documents, or fewer lags."
        )
    if layer_below_lags(spec.formula) and blocks < 2:
        raise InputError(f"{spec.formula!r} needs a layer below; the model has {blocks}.")


def moments_of_shard(norms: pd.DataFrame, tokens: pd.DataFrame, spec: Spec, *, longest: int) -> LagSums:
    """Return the sums of a spec's regression over the norms of one shard.

    Parameters
    ----------
    norms, tokens : pandas.DataFrame
    spec : Spec
    longest : int
        The tokens of the longest window of the whole corpus: Newey-West's lags hang on it.
    """
    sums = LagSums(
        spec.formula,
        cluster="doc" if spec.cov in CLUSTERED else None,
        max_lag=max(1, min(int(4 * (longest / 100) ** (2 / 9)), longest - 1)) if spec.cov == "hac" else 1,
    )
    lagged = lagged_norms(norms, spec.formula, lags=spec.lags, skip=spec.skip)
    sums.update(annotated(lagged, lambda: tokens, spec.formula))
    return sums


def merged(parts: Iterable[LagSums]) -> LagSums:
    """Return the sums over all parts, which are merged in pairs, pairs of pairs, ...: n log n, the same every time."""
    held: list[tuple[int, LagSums]] = []
    for part in parts:
        level = 0
        while held and held[-1][0] == level:
            part = held.pop()[1].merge(part)
            level += 1
        held.append((level, part))
    if not held:
        raise InputError("There is no shard to sum.")
    _, whole = held.pop()
    while held:
        whole = held.pop()[1].merge(whole)
    return whole


def annotated(lagged: pd.DataFrame, tokens: Callable[[], pd.DataFrame], formula: str) -> pd.DataFrame:
    """Return the lagged frame with the tokens' columns that the formula asks for, read only if it asks."""
    wanted = [column for column in formula_columns(formula) if column not in lagged.columns]
    if not wanted:
        return lagged
    keys = ["doc", "window", "position"]
    frame = tokens()
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise InputError(
            f"The formula {formula!r} needs the column {missing[0]!r}; the run has "
            f"{sorted({*lagged.columns, *frame.columns})}."
        )
    right = frame[[*keys, *wanted]].astype({"doc": "str"})
    return lagged.astype({"doc": "str"}).merge(right, on=keys, how="left", validate="many_to_one")


def lagged_norms(norms: pd.DataFrame, formula: str, *, lags: Sequence[int], skip: int) -> pd.DataFrame:
    """Return the lagged frame that a formula needs, without the layer that has none below it if it asks for that."""
    below = layer_below_lags(formula)
    lagged = add_lags(norms, lags=lags, skip=skip, layer_below=below)
    return lagged[lagged["layer"] > 0] if below else lagged  # nothing is below the first layer
