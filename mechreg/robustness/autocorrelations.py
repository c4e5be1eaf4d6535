"""Autocorrelation: how long a token's norm is felt, once levels of documents and positions are taken off."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechreg.lags import add_lags
from mechreg.outside import any_frames
from mechreg.regression import demeaned, require_effects
from mechreg.regression.blocks import Codes, Columns, Numbers
from mechreg.regression.clusters import require_two, sums_by_cluster
from mechreg.regression.drawn import document_weights, quantile_interval
from mechreg.regression.rows import TAKEN_UP
from mechreg.schema import (
    MAX_LAGS,
    TOKEN_KEYS,
    InputError,
    NumericalError,
    group_columns,
    require,
    require_shared,
    require_whole_number,
)
from mechreg.words import keys_in_words

LagDraws = Float[np.ndarray, "draws lags"]

WHO = "autocorrelation"
# What the fitted rho is chosen from.
RHO = np.arange(0.005, 0.9999, 0.0005)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Autocorrelation:
    """What `autocorrelation` returns.

    Attributes
    ----------
    lags : pandas.DataFrame
        A row a layer and lag (from 1): model, hook, layer, (head,) depth, lag, acf, acf_low, acf_high, pacf, pacf_low,
        pacf_high, fitted (s rho^lag), n_pairs.
    layers : pandas.DataFrame
        A row a layer: model, hook, layer, (head,) depth, n, n_docs; s, the share of the variance that is a slow
        context, white_share (1 - s), rho and half_life (tokens until s rho^lag has halved; NaN where s is above 1 or
        its interval reaches 0), each with _low and _high; breusch_godfrey (an F, NaN where
        documents repeat each other), its df, df_denom and p.
    """

    lags: pd.DataFrame
    layers: pd.DataFrame

    def __repr__(self) -> str:
        columns = ["model", "hook", "layer", "s", "s_low", "s_high", "rho", "half_life", "breusch_godfrey_p"]
        return self.layers[columns].to_string(index=False, na_rep="", float_format="{:.3g}".format)

    def _repr_html_(self) -> str:
        return str(self.layers.to_html(index=False, border=0, na_rep="", float_format="{:.3g}".format))


@any_frames
def autocorrelation(
    norms: pd.DataFrame,
    *,
    max_lag: int = 32,
    effects: str | Sequence[str] = ("doc", "position"),
    lags: int | Iterable[int] = (1, 2),
    order: int = 4,
    skip: int = 1,
    drop_sinks: str | Iterable[str] = (),
    draws: int = 499,
    conf_level: float = 0.95,
    seed: int = 0,
) -> Autocorrelation:
    """Return the autocorrelation of the log norms of every layer, what is left of it by an AR(p), and how slow it is.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame. Nothing crosses a window; a token that is left out is in no pair.
    max_lag : int
        The longest lag, also of the fit of s rho^lag.
    effects : str or sequence of str
        Columns whose levels are partialled out: those that differ between documents look like an autocorrelation that
        never ends.
    lags, order : int
        Breusch and Godfrey's test is of so many residuals before, in the regression on these lags.
    skip, drop_sinks : optional
        As for `add_lags`.
    draws, conf_level, seed : optional
        Of the bootstrap of documents, whose quantiles are the intervals: of one lag or number at a time.

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `add_lags`; fewer than two documents, or no pair of tokens as far apart as ``max_lag``.

    Notes
    -----
    The fit is least squares over the lags 1 to ``max_lag``: white noise on top of an AR(1) is an ARMA(1,1), whose
    autocorrelation is s rho^lag, and whose best two lags, by which it is usually judged, are much smaller.
    Levels that are estimated from T tokens lower every autocorrelation by about (1 + 2 sum of acf) / T.

    The test is the score's, clustered: with m_g document g's sum of residual times the residuals before it (less
    what the lags and effects explain of those), Hotelling's T2 of the m_g, (G - p) / ((G - 1) p) T2 ~ F(p, G - p).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcdefgh"), 99),
    ...                       "window": 0, "position": np.tile(range(99), 8), "norm": rng.lognormal(size=792)})
    >>> found = autocorrelation(norms, max_lag=4)
    >>> bool(found.lags["acf"].abs().max() < 0.1)
    True
    """
    require_whole_number(max_lag, name="max_lag", least=2, most=MAX_LAGS)
    require_whole_number(order, name="order", most=MAX_LAGS)
    require_whole_number(draws, name="draws", least=99, most=100_000)
    require_shared(skip=skip, conf_level=conf_level, seed=seed)
    lagged = add_lags(norms, lags=lags, skip=skip, drop_sinks=drop_sinks)
    names = require_effects(effects)
    require(lagged, names, who=WHO)
    made = [name for name in lagged.columns if name not in norms.columns and str(name).startswith("lag")]
    keys = group_columns(lagged)
    of_lags, of_layers = [], []
    for values, rows in lagged.sort_values([*TOKEN_KEYS]).groupby(keys, observed=True, sort=True):
        place = dict(zip(keys, values, strict=True))
        where = keys_in_words(place)
        place["depth"] = float(rows["depth"].iloc[0]) if "depth" in rows else np.nan
        group = _Group(rows, names, reach=max(max_lag, order), where=where)
        lag_table, layer = _described(group, max_lag, draws, conf_level, seed)
        of_lags.append(pd.DataFrame(place | lag_table))
        of_layers.append(place | layer | group.breusch_godfrey(made, order))
    return Autocorrelation(lags=pd.concat(of_lags, ignore_index=True), layers=pd.DataFrame(of_layers))


class _Group:
    """The rows of one layer, in the order of their tokens, each with its slot on a line with gaps between windows."""

    def __init__(self, rows: pd.DataFrame, effects: tuple[str, ...], *, reach: int, where: str) -> None:
        self.rows, self.effects, self.where = rows, effects, where
        window = rows.groupby(["doc", "window"], observed=True, sort=False).ngroup().to_numpy()
        position = rows["position"].to_numpy(np.int64)
        ends = np.r_[np.flatnonzero(np.diff(window)), len(rows) - 1]
        begin = np.cumsum(np.r_[0, position[ends][:-1] + 1 + reach])
        self.slot = begin[window] + position
        self.slots = int(self.slot[-1]) + 1
        self.doc = pd.factorize(rows["doc"])[0]

    def residuals(self, columns: list[str]) -> tuple[Columns, Codes]:
        """Return columns of the complete rows without the effects, and which rows those are."""
        table = self.rows[columns].to_numpy("float64").T
        at = np.flatnonzero(~np.isnan(table).any(axis=0))
        return self.without_effects(table[:, at], at), at

    def without_effects(self, columns: Columns, at: Codes) -> Columns:
        """Return columns of some rows without the effects."""
        return demeaned(columns, [pd.factorize(self.rows[name])[0][at] for name in self.effects])

    def before(self, values: Numbers, at: Codes, lag: int) -> tuple[Numbers, Numbers]:
        """Return each row's value so many tokens before, 0 where there is none, and whether there is one."""
        line, known = np.zeros((2, self.slots + lag))
        line[lag + self.slot[at]], known[lag + self.slot[at]] = values, 1.0
        return line[self.slot[at]], known[self.slot[at]]

    def breusch_godfrey(self, lags: list[str], order: int) -> dict[str, float]:
        """Return the clustered score test of serial correlation in the residuals of the regression on lags."""
        (y, *x), at = self.residuals(["log_norm", *lags])
        design, doc = np.array(x), pd.factorize(self.doc[at])[0]
        residual = y - _fitted(y[None], design)[0]
        earlier = np.array([self.before(residual, at, lag)[0] for lag in range(1, order + 1)])
        earlier = self.without_effects(earlier, at)
        scores = (earlier - _fitted(earlier, design)) * residual
        sums = sums_by_cluster(scores, doc)
        count, df = len(sums), len(sums) - order
        f = p = np.nan
        mean, spread = sums.mean(axis=0), np.atleast_2d(np.cov(sums.T)) if count > 1 else np.zeros((1, 1))
        rounding = 1e-12 * float((sums**2).sum()) / max(count, 1)
        if df > 0 and np.linalg.matrix_rank(spread, tol=rounding, hermitian=True) == order:
            f = df / ((count - 1) * order) * float(count * mean @ np.linalg.solve(spread, mean))
            p = float(stats.f.sf(f, order, df))
        name = "breusch_godfrey"
        return {name: f, f"{name}_df": order, f"{name}_df_denom": df, f"{name}_p": p}


def _described(
    group: _Group, max_lag: int, draws: int, conf_level: float, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of one layer's lags, and its row."""
    (y,), at = group.residuals(["log_norm"])
    doc = pd.factorize(group.doc[at])[0]
    count = int(doc.max()) + 1 if len(doc) else 0
    require_two(count, "documents", who=WHO, where=group.where)
    whole = group.rows["log_norm"].to_numpy("float64")[at]
    if np.linalg.norm(y) <= TAKEN_UP * np.linalg.norm(whole - whole.mean()):
        raise NumericalError(
            f"{WHO} finds nothing left of the log norms in {group.where} after the effects {list(group.effects)}. Do "
            "its documents repeat each other? Leave copies out, or use fewer effects=."
        )
    products, pairs = np.zeros((2, count, max_lag + 1))
    for lag in range(max_lag + 1):
        earlier, known = group.before(y, at, lag) if lag else (y, np.ones(len(y)))
        products[:, lag] = np.bincount(doc, weights=y * earlier, minlength=count)
        pairs[:, lag] = np.bincount(doc, weights=known, minlength=count)
    if not pairs[:, -1].any():
        raise InputError(
            f"{WHO} needs tokens {max_lag} apart; no window of {group.where} is that long. Use a smaller max_lag=."
        )
    weights = document_weights(np.random.default_rng(seed), count, draws)
    weights = np.concatenate([np.ones((1, count)), weights])
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = (weights @ products) / (weights @ pairs)
        acf = covariance[:, 1:] / covariance[:, :1]
    acf = acf[np.isfinite(acf).all(axis=1)]  # draws of short documents may have no such pair
    pacf, (s, rho) = _partial(acf), _slow(acf)
    number = np.arange(1, max_lag + 1)
    columns: dict[str, Any] = {"lag": number}
    for name, drawn in {"acf": acf, "pacf": pacf}.items():
        columns |= _with_band(name, drawn, conf_level)
    columns |= {"fitted": s[0] * rho[0] ** number, "n_pairs": pairs[:, 1:].sum(axis=0).astype(int)}
    row: dict[str, Any] = {"n": len(y), "n_docs": count}
    numbers = {"s": s, "white_share": 1 - s, "rho": rho, "half_life": np.log(0.5) / np.log(rho)}
    for name, drawn in numbers.items():
        row |= _with_band(name, drawn, conf_level)
    if not (row["s_low"] > 0 and row["s"] <= 1):
        row |= dict.fromkeys(("half_life", "half_life_low", "half_life_high"), np.nan)
    return columns, row


def _with_band(name: str, drawn: Float[np.ndarray, "*draws"], conf_level: float) -> dict[str, Any]:
    """Return the estimate, which is the first, with quantiles of the draws after it."""
    low, high = quantile_interval(drawn[1:], conf_level)
    return {name: drawn[0], f"{name}_low": low, f"{name}_high": high}


def _partial(acf: LagDraws) -> LagDraws:
    """Return the partial autocorrelations (Durbin, Levinson)."""
    partial, phi = np.zeros_like(acf), np.zeros((len(acf), 0))
    for lag in range(acf.shape[1]):
        before = acf[:, :lag]
        above = acf[:, lag] - (phi * before[:, ::-1]).sum(axis=1)
        partial[:, lag] = above / (1 - (phi * before).sum(axis=1))
        phi = np.column_stack([phi - partial[:, [lag]] * phi[:, ::-1], partial[:, lag]])
    return partial


def _slow(acf: LagDraws) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Return s and rho of the least-squares fit of s rho^lag."""
    powers = RHO ** np.arange(1, acf.shape[1] + 1)[:, None]
    along, size = acf @ powers, (powers**2).sum(axis=0)
    best = (along**2 / size).argmax(axis=1)
    return along[np.arange(len(acf)), best] / size[best], RHO[best]


def _fitted(columns: Columns, design: Float[np.ndarray, "terms rows"]) -> Columns:
    """Return the least-squares fit of columns on a design."""
    return np.linalg.solve(design @ design.T, design @ columns.T).T @ design
