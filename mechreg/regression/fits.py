"""One regression for every model, hook point and layer, from sums of products; statsmodels' results on demand."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from statsmodels.regression.linear_model import RegressionResultsWrapper

from mechreg.formulas import formula_columns
from mechreg.outside import for_page, for_terminal
from mechreg.regression.blocks import MAX_SUMMED_LAGS, TooManyProducts
from mechreg.regression.design import matrices
from mechreg.regression.evaluation import evaluate
from mechreg.regression.lag_sums import LagSums
from mechreg.regression.residuals import Products, residual_statistics, row_products, summed_products
from mechreg.regression.results import (
    CLUSTERED,
    Adjust,
    Covariance,
    Fit,
    coefficient_frame,
    covariance_of,
    statistics_frame,
    usual_lags,
)
from mechreg.regression.rows import Place, Rows, groups_of, read_groups, words
from mechreg.regression.statsmodels_result import statsmodels_result
from mechreg.schema import (
    GROUP_KEYS,
    TOKEN_KEYS,
    Cov,
    InputError,
    among,
    did_you_mean,
    require,
    require_by,
    require_conf_level,
    require_option,
    require_whole_number,
)

# The residuals' statistics need so many sums a group at most (8 MB); of more columns they are made from the rows.
MOST_PRODUCTS = 1_000_000


def fit_lagged(
    lagged: pd.DataFrame,
    formula: str = "log_norm ~ lag1 + lag2",
    *,
    cov: Cov = "auto",
    adjust: Adjust = "bh",
    cluster: str = "doc",
    by: str | Sequence[str] = (),
    hac_lags: int | None = None,
    conf_level: float = 0.95,
    seed: int = 0,
) -> "LaggedFits":
    """Return the least-squares fit of a formula in every (model, hook, layer), as tidy tables.

    Parameters
    ----------
    lagged : pandas.DataFrame
        Any frame with model, hook, layer (a fit for each, and for each ``head`` where there is that column) and
        the formula's columns; rows in any order, which changes nothing. ``doc``, ``window``, ``position`` are needed
        by what uses them. Rows with a value missing in one of the formula's columns are left out.
    formula : str
        In patsy's language: columns, ``np.log(x)``, ``C(pos)``, ``lag1 * source``, ``bs(position, df=4)``, ... and
        pandas' methods such as ``x.std()``, whose ddof is 1 (that of ``np.std(x)`` is 0). Lags are columns, made by
        `add_lags`; a name that is not a column, and a call that is not listed, is refused.
    cov : str
        "nonrobust"; "hc0" to "hc3"; "hac": Newey-West within windows, Bartlett weights, times n/(n-k); "crv1" and
        "crv3": clustered, with the factors G/(G-1) (n-1)/(n-k) and (G-1)/G, and t(G-1) for all tests. "auto" is
        crv3, or nonrobust where all rows are of one cluster (``cov_type`` says "nonrobust (single document)").
        "jackknife" is crv3 about the mean of the fits without a cluster.
    adjust : str
        "bh" (Benjamini-Hochberg), "bonferroni", "holm", "max-t" or "none": ``p_adjusted`` over all terms but the
        intercept in all layers of a (model, hook). "max-t" counts how alike the layers are: a wild bootstrap of
        the clusters, 9,999 draws, the same weights in all layers; it needs cov "crv3" or "crv1".
    cluster : str
        The column of clusters.
    by : str or sequence of str
        Columns such as ``pos`` or ``source``: a fit for each of their values in each layer, columns of both tables.
        All values of a (model, hook) are one family of ``adjust``.
    hac_lags : int, optional
        By default floor(4 (T/100)^(2/9)), T the rows of the longest window, less than T; ``cov_type`` says
        which, as in "hac(4)".
    conf_level, seed
        The level of the intervals; the seed of "max-t".

    Returns
    -------
    LaggedFits
        Models and hooks in the order of the frame, layers (and heads) ascending.

    Raises
    ------
    SchemaError, InputError
        A missing column, a formula that cannot be read, too few rows, a constant column, fewer than two clusters.
    NumericalError
        Infinite values, or columns too collinear for double precision; the message names the group.

    Notes
    -----
    CRV3 and t(G-1): MacKinnon, Nielsen, Webb, arXiv 2301.04527. Newey, West (1987).

    With lags of the outcome among the regressors, serial correlation left in the residuals (see ``statistics``) biases
    the coefficients, and no standard error repairs that (Keele, Kelly 2006): a beta is predictive, not structural.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from mechreg.lags import add_lags
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c"], 50),
    ...                       "window": 0, "position": np.tile(range(50), 3), "norm": rng.lognormal(size=150)})
    >>> fits = fit_lagged(add_lags(norms))
    >>> fits.coefficients[["term", "df", "n", "n_docs", "n_dropped", "cov_type"]]
            term   df    n  n_docs  n_dropped cov_type
    0  Intercept  2.0  141       3          9     crv3
    1       lag1  2.0  141       3          9     crv3
    2       lag2  2.0  141       3          9     crv3
    """
    by = require_by(by, who="fit_lagged")
    _require_options(cov, adjust, hac_lags, conf_level, seed)
    is_clustered = cov in CLUSTERED
    keys = TOKEN_KEYS if cov == "hac" else (cluster,) if is_clustered else ()
    require(lagged, (*GROUP_KEYS, *formula_columns(formula), *by, *keys), who="fit_lagged")
    # A reference, not a copy of the data: pandas copies on write, so later changes to `lagged` do not reach it.
    frame = lagged.copy(deep=False)
    make = partial(LagSums.from_frame, frame, formula, by=by, cluster=cluster if is_clustered else None)
    try:
        lags = None if cov in ("hc2", "hc3") else _lags_of(frame, hac_lags) if cov == "hac" else 1
        sums = make(max_lag=lags, most_products=MOST_PRODUCTS)
    except TooManyProducts:
        sums = make(max_lag=None)
    fits = sums.solve()
    known: dict[tuple, Any] = {}
    for fit, products in _products(fits, sums, frame):
        residuals = residual_statistics(fit.solution, products, longest=fit.blocks.longest)
        covariance = covariance_of(fit, products, cov=cov, cluster=sums.cluster, hac_lags=hac_lags)
        known[tuple(fit.keys.values())] = covariance, residuals
    covariances, statistics = zip(*(known[tuple(fit.keys.values())] for fit in fits), strict=True)
    return LaggedFits(
        coefficients=coefficient_frame(
            fits, covariances, adjust=adjust, conf_level=float(conf_level), seed=seed, by=by
        ),
        statistics=statistics_frame(fits, statistics, by=by),
        _frame=frame,
        _sums=sums,
        _covariances={key: covariance for key, (covariance, _) in known.items()},
        _conf_level=float(conf_level),
    )


def _require_options(cov: str, adjust: str, hac_lags: int | None, conf_level: float, seed: int) -> None:
    require_option(cov, get_args(Cov), name="cov")
    require_option(adjust, get_args(Adjust), name="adjust")
    require_conf_level(conf_level)
    require_whole_number(seed, name="seed", least=0)
    if hac_lags is not None:
        require_whole_number(hac_lags, name="hac_lags", least=0, most=MAX_SUMMED_LAGS)
        if cov != "hac":
            raise InputError(f"hac_lags={hac_lags} needs cov='hac'; got cov={cov!r}.")
    if adjust == "max-t" and cov not in ("auto", "crv1", "crv3"):
        raise InputError(f"adjust='max-t' resamples clusters: it needs cov='crv3' or 'crv1'; got {cov!r}.")


def _lags_of(frame: pd.DataFrame, hac_lags: int | None) -> int:
    """Return how far back Newey-West needs products; 1 for the statistics."""
    longest = int(frame["position"].max() - frame["position"].min()) + 1 if len(frame) else 1
    return max(1, usual_lags(longest) if hac_lags is None else min(hac_lags, longest - 1))


def _products(fits: list[Fit], sums: LagSums, frame: pd.DataFrame) -> Iterator[tuple[Fit, Products]]:
    """Yield every fit with its products: those of the sums, else of the rows in a second look."""
    if sums.max_lag is not None:
        for fit in fits:
            yield fit, summed_products(fit.solution, fit.blocks)
        return
    by_keys = {tuple(fit.keys.values()): fit for fit in fits}
    for rows in read_groups(frame, sums.columns, cluster=sums.cluster, by=sums.by):
        fit = by_keys[tuple(rows.keys.values())]
        yield fit, row_products(fit.solution, fit.blocks, rows, sums.formula)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LaggedFits:
    """The fits of one formula: ``coefficients``, ``statistics``, ``sums``, and statsmodels' results on demand.

    Attributes
    ----------
    coefficients : pandas.DataFrame
        One row a term: model, hook, layer, (head,) depth, term, estimate, std_error, statistic (t), df of that t,
        p_value, conf_low, conf_high, p_adjusted, n, n_docs, n_dropped, r_squared, adj_r_squared, cov_type.
        ``n_docs`` is 0 where the frame has no ``doc``, ``depth`` NaN where it has none.
    statistics : pandas.DataFrame
        One row a fit: n, n_docs, n_sinks (left out by ``add_lags``); all else from the nonrobust fit: F, AIC, BIC,
        residual_sd; Breusch-Godfrey of order 1 (the residual before is 0 at a window's start) and Durbin-Watson,
        neither across windows, NaN where the frame lacks doc, window or position; Koenker's Breusch-Pagan, NaN
        without an intercept; Jarque-Bera.
    """

    coefficients: pd.DataFrame
    statistics: pd.DataFrame
    _frame: pd.DataFrame
    _sums: LagSums
    _covariances: dict[tuple, Covariance]
    _conf_level: float

    @property
    def formula(self) -> str:
        """The formula, as it was given."""
        return self._sums.formula

    @property
    def by(self) -> tuple[str, ...]:
        """The columns by whose values there are fits of their own."""
        return self._sums.by

    @cached_property
    def sums(self) -> LagSums:
        """The sums by document: other covariances, refits and comparisons start from them, not from the rows.

        They are those of the tables; where the fit has no clusters or others they are made on first use.
        """
        if self._sums.cluster == "doc":
            return self._sums
        return LagSums.from_frame(self._frame, self.formula, by=self.by, max_lag=None)

    @cached_property
    def _places(self) -> dict[tuple, Place]:
        return {tuple(keys.values()): place for keys, place in groups_of(self._frame, self.by)}

    def _rows(self, fit: Fit) -> Rows:
        """Return the rows of one fit."""
        part = self._frame.iloc[self._places[tuple(fit.keys.values())]]
        return next(read_groups(part, self._sums.columns, cluster=None, by=self.by))

    def result(
        self,
        *,
        model: str | None = None,
        layer: int | None = None,
        hook: str | None = None,
        head: int | None = None,
        **by: Any,
    ) -> RegressionResultsWrapper:
        """Return statsmodels' own results object of one fit, with the covariance of the table.

        What the fits have only one of may be left out; columns of ``by=`` are named as they are (``pos="NOUN"``).
        Contrasts (``t_test``, ``wald_test``), influence measures (``get_influence``), predictions and summaries are
        then statsmodels'. Its rows are the complete ones, sorted by document (as text), window, position.

        No such fit, or more than one, is an `InputError`.
        """
        fit = self._chosen({"model": model, "hook": hook, "layer": layer, "head": head} | by)
        covariance = self._covariances[tuple(fit.keys.values())]
        return statsmodels_result(self._rows(fit).data, self.formula, fit, covariance)

    def summary(
        self,
        *,
        model: str | None = None,
        layer: int | None = None,
        hook: str | None = None,
        head: int | None = None,
        **by: Any,
    ) -> str:
        """Return statsmodels' own summary text of one fit, which is chosen as for `result`.

        Its Durbin-Watson runs over all rows, across windows. A last line says where its F-statistic, whose covariance
        has at most one direction less than there are clusters, is no test of all terms.
        """
        fit = self._chosen({"model": model, "hook": hook, "layer": layer, "head": head} | by)
        result = self.result(**fit.keys)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "covariance of constraints does not have full rank")
            text = str(result.summary(alpha=round(1 - self._conf_level, 12)))
        terms = int(result.df_model)
        most = result.df_resid_inference  # clusters - 1, where there are clusters
        if result.cov_type.startswith("cluster") and terms > most:
            text += (
                f"\n[mechreg] The F-statistic is no test of all {terms} terms at once: {most + 1} clusters allow "
                f"{most} at most.\nTerms one by one are not affected."
            )
        sinks = f"\n[mechreg] {fit.n_sinks} tokens are left out as sinks, as outcome and as lag."
        return text + sinks * (fit.n_sinks > 0)

    def _chosen(self, named: dict[str, Any]) -> Fit:
        """Return the one fit of these keys."""
        fits, keys = self._sums.solve(), (*GROUP_KEYS, "head", *self.by)
        for key in named:
            if key not in keys:
                raise InputError(f"The fits are not by {key!r}; they are by {list(self.by)}.")
        for key in keys:
            have = list(dict.fromkeys(fit.keys[key] for fit in fits if key in fit.keys))
            value = named.get(key)
            if value is None and len(have) < 2:
                continue
            if not among(value, have):
                came = "none was given" if value is None else f"got {value!r}"
                raise InputError(f"Give {key}=, one of {have}; {came}.{did_you_mean(value, have)}")
            fits = [fit for fit in fits if fit.keys[key] == value]
        return fits[0]

    def augment(self, lagged: pd.DataFrame) -> pd.DataFrame:
        """Return the lagged frame with the columns ``predicted`` and ``residual``.

        Parameters
        ----------
        lagged : pandas.DataFrame
            The frame that was fitted, or another with the same models, hooks and layers (held-out documents):
            splines and centring, of the outcome too, then keep what they learned from the first.

        Returns
        -------
        pandas.DataFrame
            The same rows in the same order; NaN where one of the formula's columns is missing.

        Raises
        ------
        SchemaError, InputError
            A missing column, a group that was not fitted, or a formula of which nothing is kept, as
            ``x - x.mean()``, with rows that were not fitted.
        """
        new = np.full((2, len(lagged)), np.nan)
        for fit, rows, outcome, design in self._designs(lagged, who="augment"):
            predicted = design @ fit.solution.estimate
            new[:, rows.at] = predicted, outcome - predicted
        return lagged.assign(predicted=new[0], residual=new[1])

    def _designs(
        self, lagged: pd.DataFrame, *, who: str
    ) -> Iterator[tuple[Fit, Rows, np.ndarray, np.ndarray]]:
        """Yield the groups of a frame, all of which were fitted: each with its fit, outcome and design."""
        require(lagged, (*GROUP_KEYS, *self._sums.columns, *self.by), who=who)
        fits = {tuple(fit.keys.values()): fit for fit in self._sums.solve()}
        for keys, _ in groups_of(lagged, self.by):
            if tuple(keys.values()) not in fits:
                raise InputError(f"{who} needs groups that were fitted; {words(keys)} was not.")
        for rows in read_groups(lagged, self._sums.columns, cluster=None, by=self.by):
            if len(rows.at):
                fit = fits[tuple(rows.keys.values())]
                build = partial(matrices, self.formula, self._rows(fit).data, rows.data)
                yield fit, rows, *evaluate(build, self.formula, where=fit.where)

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.coefficients["cov_type"]))
        models = ", ".join(dict.fromkeys(self.coefficients["model"]))
        return for_terminal(f"LaggedFits({self.formula!r}: {len(self.statistics)} fits of {models}; {kinds})")

    def _repr_html_(self) -> str:
        table = self.coefficients.to_html(max_rows=12, index=False, na_rep="", float_format="{:.4g}".format)
        return f"<p><code>{for_page(repr(self))}</code></p>{table}"


def lstsq_check(fits: LaggedFits, lagged: pd.DataFrame) -> pd.DataFrame:
    """Return every estimate beside the one that ``numpy.linalg.lstsq`` gives on the same design.

    Parameters
    ----------
    fits : LaggedFits
    lagged : pandas.DataFrame
        The frame that was fitted.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) term, estimate, lstsq, difference (estimate - lstsq).

    Raises
    ------
    SchemaError, InputError
        A missing column, or not the groups, terms or rows that were fitted.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> x = np.random.default_rng(0).normal(size=20)
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "y": 1 + 2 * x + x**2, "x": x})
    >>> fits = fit_lagged(frame, "y ~ x", cov="nonrobust")
    >>> bool(lstsq_check(fits, frame)["difference"].abs().max() < 1e-12)
    True
    """
    keys, parts = list(fits._sums.solve()[0].keys), []
    for fit, _, outcome, design in fits._designs(lagged, who="lstsq_check"):
        if len(outcome) == fit.solution.n:
            estimate = np.linalg.lstsq(design, outcome, rcond=None)[0]
            parts.append(pd.DataFrame({**fit.keys, "term": fit.solution.names, "lstsq": estimate}))
    check = fits.coefficients[[*keys, "term", "estimate"]]
    if sum(map(len, parts)) < len(check):
        raise InputError(
            "lstsq_check needs the frame that was fitted; this one has other groups, terms or rows."
        )
    check = check.merge(pd.concat(parts), on=[*keys, "term"], how="left")
    return check.assign(difference=check["estimate"] - check["lstsq"])
