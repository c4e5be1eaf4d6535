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
from mechreg.outside import Printed, any_frames, for_page, for_terminal
from mechreg.regression.blocks import TooManyProducts
from mechreg.regression.clusters import Clusters
from mechreg.regression.design import matrices, take_apart
from mechreg.regression.evaluation import evaluate
from mechreg.regression.fixed_effects import require_effects
from mechreg.regression.lag_sums import LagSums
from mechreg.regression.residuals import Residuals, residual_statistics
from mechreg.regression.results import (
    CLUSTERED,
    Adjust,
    Covariance,
    coefficient_frame,
    covariance_of,
    require_table_options,
    statistics_frame,
    usual_lags,
)
from mechreg.regression.rows import Place, Rows, absorbed_parts, groups_of, read_groups
from mechreg.regression.second_look import across_clusters, products_of, two_way_covariances
from mechreg.regression.solve import Fit
from mechreg.regression.statsmodels_result import statsmodels_result
from mechreg.schema import (
    DEFAULT_COV,
    GROUP_KEYS,
    TOKEN_KEYS,
    Cov,
    InputError,
    among,
    did_you_mean,
    one_or_many,
    require,
    require_by,
)
from mechreg.words import count, keys_in_words

# The residuals' statistics need so many sums a group at most (8 MB); of more columns they are made from the rows.
MOST_PRODUCTS = 1_000_000


@any_frames
def fit_lagged(
    lagged: pd.DataFrame,
    formula: str = "log_norm ~ lag1 + lag2",
    *,
    cov: Cov = DEFAULT_COV,
    adjust: Adjust = "bh",
    cluster: str | Sequence[str] = "doc",
    by: str | Sequence[str] = (),
    effects: str | Sequence[str] = (),
    hac_lags: int | None = None,
    conf_level: float = 0.95,
    seed: int = 0,
) -> "LaggedFits":
    """Return the least-squares fit of a formula in every (model, hook, layer), as tidy tables.

    Parameters
    ----------
    lagged : pandas.DataFrame
        Any frame with model, hook, layer (a fit for each, and for each ``head`` if there is one) and the formula's
        columns (`add_lags` makes lags), rows in any order; those with a missing value are left out.
    formula : str
        In patsy's language: columns, ``np.log(x)``, ``C(pos)``, ``lag1 * source``, ``bs(position, df=4)``, ... and
        pandas' methods such as ``x.std()``, whose ddof is 1 (that of ``np.std(x)`` is 0).
    cov : str
        "nonrobust"; "hc0" to "hc3"; "hac": Newey-West (1987) within windows, Bartlett weights, times n/(n-k).
        Clustered: "crv3", with the factor (G-1)/G; "jackknife", the same about the mean of the fits without a cluster;
        "crv2"; all with Bell's and McCaffrey's degrees of freedom of each coefficient; "crv1", with G/(G-1)
        (n-1)/(n-k) and t(G-1). "auto" is crv3, or nonrobust where all rows are of one cluster (``cov_type`` says
        "nonrobust (single document)").
    adjust : str
        "bh" (Benjamini-Hochberg), "bonferroni", "holm", "max-t" or "none": ``p_adjusted`` over all terms but the
        intercept in all layers of a (model, hook). "max-t", by a wild bootstrap of the clusters, 9,999 draws with the
        same weights in all layers, counts how alike the layers are; it needs cov "crv3" or "crv1".
    cluster : str or two of them
        The column of clusters; ``("doc", "token_id")`` allows for both, by "crv1" and the smaller number of clusters.
    by : str or sequence of str
        Columns such as ``pos``: a fit for each of their values in each layer, all of one family of ``adjust``.
    effects : str or sequence of str
        Columns such as ``("doc", "position")`` whose levels are partialled out of outcome and regressors. R2 is then
        of what they leave; rows alone in a level are left out, as reghdfe does; "crv3" estimates them anew without
        each cluster, "crv1" does not count levels within clusters. Breusch-Godfrey and -Pagan are NaN.
    hac_lags : int, optional
        By default floor(4 (T/100)^(2/9)), T the rows of the longest window; ``cov_type`` names it: "hac(4)".
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
    CRV3: MacKinnon, Nielsen, Webb, arXiv 2301.04527. Degrees of freedom: Bell, McCaffrey (2002); Pustejovsky, Tipton
    (2018). With lags of the outcome, serial correlation left in the residuals (see ``statistics``) biases coefficients,
    and no standard error repairs that (Keele, Kelly 2006): a beta is predictive, not structural.

    Examples
    --------
    >>> from mechreg.lags import add_lags
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c"], 50),
    ...                       "window": 0, "position": np.tile(range(50), 3), "norm": rng.lognormal(size=150)})
    >>> fits = fit_lagged(add_lags(norms))
    >>> fits.coefficients[["term", "n", "n_docs", "n_dropped", "cov_type"]]
            term    n  n_docs  n_dropped cov_type
    0  Intercept  141       3          9     crv3
    1       lag1  141       3          9     crv3
    2       lag2  141       3          9     crv3
    """
    by, effects = require_by(by, who="fit_lagged"), require_effects(effects)
    require_table_options(cov, get_args(Cov), adjust, hac_lags, conf_level, seed)
    is_clustered = cov in CLUSTERED
    cluster, *crossed = one_or_many(cluster) or [None]
    if (
        cluster is None
        or len(crossed) > 1
        or (crossed and (cov not in ("auto", "crv1") or adjust == "max-t"))
    ):
        raise InputError("cluster= takes one column, or two with cov='crv1' and no adjust='max-t'.")
    keys = TOKEN_KEYS if cov == "hac" else (cluster, *crossed) if is_clustered else ()
    require(lagged, (*GROUP_KEYS, *formula_columns(formula), *by, *effects, *keys), who="fit_lagged")
    # A reference, not a copy of the data: pandas copies on write, so later changes to `lagged` do not reach it.
    frame = lagged.copy(deep=False)
    options: dict[str, Any] = {"by": by, "effects": effects, "cluster": cluster if is_clustered else None}
    max_lag = _max_lag(frame, cov, hac_lags)
    try:
        sums = LagSums.from_frame(frame, formula, max_lag=max_lag, most_products=MOST_PRODUCTS, **options)
    except TooManyProducts:
        sums = LagSums.from_frame(frame, formula, max_lag=None, **options)
    fits = sums.solve()
    covariances: dict[tuple, Covariance] = {}
    residuals: dict[tuple, Residuals] = {}
    across: dict[tuple, Clusters] = {}
    if crossed:
        covariances = two_way_covariances(fits, sums, frame, crossed[0])
    elif cov in ("auto", "crv3", "jackknife"):
        across = across_clusters(fits, sums, frame)
    for fit, products in products_of(fits, sums, frame):
        residuals[fit.key] = residual_statistics(fit, products)
        if not crossed:
            covariances[fit.key] = covariance_of(
                fit, products, cov=cov, cluster=sums.cluster, hac_lags=hac_lags, clusters=across.get(fit.key)
            )
    known = [covariances[fit.key] for fit in fits]
    return LaggedFits(
        coefficients=coefficient_frame(
            fits, known, adjust=adjust, conf_level=float(conf_level), seed=seed, by=by
        ),
        statistics=statistics_frame(fits, [residuals[fit.key] for fit in fits], by=by),
        _frame=frame,
        _sums=sums,
        _covariances=covariances,
        _conf_level=float(conf_level),
        adjust=adjust,
    )


def _max_lag(frame: pd.DataFrame, cov: Cov, hac_lags: int | None) -> int | None:
    """Return how far back a covariance and the residuals' statistics need products; None for those of each row."""
    if cov in ("hc2", "hc3"):
        return None
    if cov != "hac" or not len(frame):
        return 1
    longest = int(frame["position"].max() - frame["position"].min()) + 1
    return max(1, usual_lags(longest) if hac_lags is None else min(hac_lags, longest - 1))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LaggedFits:
    """The fits of one formula: ``coefficients``, ``statistics``, ``sums``, and statsmodels' results on demand.

    Attributes
    ----------
    coefficients : pandas.DataFrame
        One row a term: model, hook, layer, (head,) depth, term, estimate, std_error, statistic (t), df of that t,
        p_value, conf_low, conf_high, p_adjusted, n, n_docs (0 without ``doc``), n_dropped, r_squared, adj_r_squared,
        cov_type.
    statistics : pandas.DataFrame
        One row a fit: n, n_docs, n_sinks (left out by ``add_lags``); all else from the nonrobust fit: F (not clustered,
        unlike that of `summary`), AIC, BIC, residual_sd; Breusch-Godfrey of order 1 (the residual before is 0 at a
        window's start) and Durbin-Watson, neither across windows, NaN where the frame lacks doc, window or position;
        Koenker's Breusch-Pagan, NaN without an intercept; Jarque-Bera.
    adjust : str
        How ``p_adjusted`` was adjusted.
    """

    coefficients: pd.DataFrame
    statistics: pd.DataFrame
    adjust: Adjust
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

    @property
    def effects(self) -> tuple[str, ...]:
        """The columns whose levels are taken off."""
        return self._sums.effects

    @cached_property
    def sums(self) -> LagSums:
        """The sums by document, from which other covariances, refits and comparisons start.

        Effects are already taken off. Refits keep the position effects estimated once from all documents; a document's
        own effect is always that document's.
        """
        if self._sums.cluster == "doc":
            return self._sums
        return LagSums.from_frame(self._frame, self.formula, by=self.by, effects=self.effects, max_lag=None)

    @cached_property
    def _places(self) -> dict[tuple, Place]:
        return {tuple(keys.values()): place for keys, place in groups_of(self._frame, self.by)}

    def _rows(self, fit: Fit) -> Rows:
        part = self._frame.iloc[self._places[fit.key]]
        return next(self._sums.rows_of(part))

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

        What the fits have only one of may be left out; columns of ``by=`` are named as they are (``pos="NOUN"``); no
        such fit, or several, is an `InputError`. Contrasts (``t_test``), influence measures (``get_influence``) and
        predictions are then statsmodels'. Its rows are the complete ones, sorted by document, window, position.
        """
        return self._result(self._chosen(model=model, hook=hook, layer=layer, head=head, **by))

    def _result(self, fit: Fit) -> RegressionResultsWrapper:
        rows = self._rows(fit)
        parts = absorbed_parts(self.formula, rows) if self.effects else None
        return statsmodels_result(rows.data, self.formula, fit, self._covariances[fit.key], parts)

    def summary(
        self,
        *,
        model: str | None = None,
        layer: int | None = None,
        hook: str | None = None,
        head: int | None = None,
        **by: Any,
    ) -> str:
        """Return statsmodels' own summary text of one fit, chosen as for `result`; its Durbin-Watson crosses windows.

        A last line says where its F-statistic is no test of all terms, because there are too few clusters.
        """
        fit = self._chosen(model=model, hook=hook, layer=layer, head=head, **by)
        result = self._result(fit)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "covariance of constraints does not have full rank")
            text = str(result.summary(alpha=round(1 - self._conf_level, 12)))
        terms, most = int(result.df_model), len(fit.blocks.labels) - 1
        if result.cov_type.startswith("cluster") and terms > most:
            text += (
                f"\n[mechreg] The F-statistic is no test of all {terms} terms at once: {most + 1} clusters allow "
                f"{most} at most.\nTerms one by one are not affected."
            )
        sinks = f"\n[mechreg] {count(fit.n_sinks, 'token')} left out as sinks, as outcome and as lag."
        return Printed(text + sinks * (fit.n_sinks > 0))

    def _chosen(self, **named: Any) -> Fit:
        """Return the one fit of these keys; those without a value are of any."""
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

    @any_frames
    def augment(self, lagged: pd.DataFrame) -> pd.DataFrame:
        """Return the lagged frame with the columns ``predicted`` and ``residual``.

        Parameters
        ----------
        lagged : pandas.DataFrame
            The frame that was fitted, or another with its models, hooks and layers (held-out documents): splines and
            centring keep what they learned from the first.

        Returns
        -------
        pandas.DataFrame
            The same rows in the same order; NaN where one of the formula's columns is missing.

        Raises
        ------
        SchemaError, InputError
            A missing column, a group that was not fitted, or new rows of a formula such as ``x - x.mean()``.
        """
        new = np.full((2, len(lagged)), np.nan)
        for fit, rows, outcome, design in self._designs(lagged, who="augment"):
            residual = outcome - design @ fit.solution.estimate
            if self.effects:  # their levels are part of what is predicted
                outcome = take_apart(self.formula, rows.data, whole=True, where=fit.where).values[-1]
            new[:, rows.at] = outcome - residual, residual
        return lagged.assign(predicted=new[0], residual=new[1])

    def _designs(
        self, lagged: pd.DataFrame, *, who: str
    ) -> Iterator[tuple[Fit, Rows, np.ndarray, np.ndarray]]:
        """Yield the groups of a frame, all of which were fitted: each with its fit, outcome and design."""
        require(lagged, (*GROUP_KEYS, *self._sums.columns, *self.by), who=who)
        fits = {fit.key: fit for fit in self._sums.solve()}
        for keys, _ in groups_of(lagged, self.by):
            if tuple(keys.values()) not in fits:
                raise InputError(f"{who} needs groups that were fitted; {keys_in_words(keys)} was not.")
        groups = read_groups(lagged, self._sums.columns, cluster=None, by=self.by, effects=self.effects)
        for rows in groups:
            if not len(rows.at):
                continue
            fit = fits[tuple(rows.keys.values())]
            if rows.effects is not None:
                if not rows.data.equals(self._rows(fit).data):
                    raise InputError(
                        f"{who} needs the frame that was fitted where there are effects: the levels of other rows are "
                        f"not known; {fit.where} has others."
                    )
                parts = absorbed_parts(self.formula, rows)
                yield fit, rows, parts.values[-1], parts.values[:-1].T
            else:
                build = partial(matrices, self.formula, self._rows(fit).data, rows.data)
                yield fit, rows, *evaluate(build, self.formula, where=fit.where)

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.coefficients["cov_type"]))
        models = ", ".join(dict.fromkeys(self.coefficients["model"]))
        fits = count(len(self.statistics), "fit")
        return for_terminal(f"LaggedFits({self.formula!r}: {fits} of {models}; {kinds})")

    def _repr_html_(self) -> str:
        table = self.coefficients.to_html(max_rows=12, index=False, na_rep="", float_format="{:.4g}".format)
        return f"<p><code>{for_page(repr(self))}</code></p>{table}"


def sums_by_document(fits: LaggedFits | LagSums, *, who: str, by: bool = False) -> LagSums:
    """Return the sums by document of fits, or the given sums; with ``by``, also of fits by columns."""
    if not isinstance(fits, LaggedFits | LagSums):
        remedy = " Fit it first: fit_lagged(lagged)." if isinstance(fits, pd.DataFrame) else ""
        raise InputError(f"{who} needs what fit_lagged gives, or LagSums; got {type(fits).__name__}.{remedy}")
    if fits.by and not by:
        raise InputError(
            f"{who} needs one fit a layer; these fits are by {list(fits.by)}. Fit the rows of one value: "
            "fit_lagged(lagged[lagged['pos'] == 'NOUN'])."
        )
    sums = fits.sums if isinstance(fits, LaggedFits) else fits
    if sums.cluster != "doc":
        raise InputError(f"{who} resamples documents: it needs LagSums(cluster='doc'); got {sums.cluster!r}.")
    return sums
