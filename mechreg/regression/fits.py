"""One regression for every model, hook point and layer, from sums of products; statsmodels on demand."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, get_args

import numpy as np
import pandas as pd
import statsmodels.formula

from mechreg.formulas import formula_columns
from mechreg.outside import for_page
from mechreg.regression.blocks import TooManyProducts
from mechreg.regression.design import matrices
from mechreg.regression.evaluation import evaluate
from mechreg.regression.lag_sums import LagSums
from mechreg.regression.results import MAX_LAGS
from mechreg.regression.statsmodels_covariances import CLUSTERED, fit_with_covariance
from mechreg.regression.statsmodels_groups import Place, Recipe, read, split
from mechreg.regression.statsmodels_tables import statsmodels_tables
from mechreg.regression.tables import Adjust
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

# The residuals' statistics need so many sums a group at most (8 MB); of more columns statsmodels makes the tables.
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
        the formula's columns; rows in any order. ``doc``, ``window``, ``position`` are needed by the covariances
        and statistics that use them. Rows with a value missing in one of the formula's columns are left out.
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
    by : sequence of str
        Columns such as ``pos`` or ``source``: a fit for each of their values in each layer, columns of both tables.
        Lags are those of the whole text, so give it the frame that `add_lags` made of it. All values of a (model,
        hook) are one family of ``adjust``.
    hac_lags : int, optional
        By default floor(4 (T/100)^(2/9)), T the rows of the longest window, less than T; ``cov_type`` says
        which, as in "hac(4)".
    conf_level : float
    seed : int
        Of "max-t".

    Returns
    -------
    LaggedFits
        Models and hooks in the order of the frame, layers (and heads) ascending.

    Raises
    ------
    SchemaError, InputError
        A missing column, a formula that cannot be read, too few rows, a constant column, fewer than two clusters.
    NumericalError
        Infinite values, or columns so collinear that double precision cannot tell them apart. All groups are
        checked before the first is fitted; the message names the group.

    Notes
    -----
    CRV3 and t(G-1): MacKinnon, Nielsen, Webb, arXiv 2301.04527. Newey, West (1987).

    With lags of the outcome among the regressors, serial correlation left in the residuals (see ``statistics``) biases
    the coefficients, and no standard error repairs that (Keele, Kelly 2006). So a beta is predictive, not structural:
    it says what goes with the update before, not what would follow if that were changed.

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
    recipe = _recipe(formula, cov, cluster, hac_lags, conf_level)._replace(
        by=require_by(by, who="fit_lagged")
    )
    require_option(adjust, get_args(Adjust), name="adjust")
    require_whole_number(seed, name="seed", least=0)
    if adjust == "max-t" and cov not in ("auto", "crv1", "crv3"):
        raise InputError(f"adjust='max-t' resamples clusters: it needs cov='crv3' or 'crv1'; got {cov!r}.")
    require(lagged, (*GROUP_KEYS, *recipe.columns, *recipe.by, *_keys_for(recipe)), who="fit_lagged")
    # A reference, not a copy of the data: pandas copies on write, so later changes to `lagged` do not reach it.
    frame = lagged.copy(deep=False)
    options: dict[str, Any] = {
        "cov": cov,
        "adjust": adjust,
        "hac_lags": hac_lags,
        "conf_level": recipe.conf_level,
        "seed": seed,
    }
    cluster_of_fit = cluster if cov in ("auto", *CLUSTERED) else None
    sums = None
    try:
        if cov in ("hc2", "hc3"):
            raise TooManyProducts  # they need the rows
        sums = _sums(frame, recipe, cluster=cluster_of_fit, max_lag=_lags_of(frame, recipe))
        coefficients, statistics = sums.coefficients(**options), sums.statistics()
    except TooManyProducts:
        coefficients, statistics = statsmodels_tables(frame, recipe, adjust)
        if adjust == "max-t":  # which needs no products of the residuals
            sums = _sums(frame, recipe, cluster=cluster_of_fit, max_lag=None)
            coefficients = sums.coefficients(**options)
    return LaggedFits(
        coefficients=coefficients, statistics=statistics, _recipe=recipe, _frame=frame, _sums=sums
    )


def _sums(frame: pd.DataFrame, recipe: Recipe, *, cluster: str | None, max_lag: int | None) -> LagSums:
    """Return the sums over a frame."""
    return LagSums.from_frame(
        frame,
        recipe.formula,
        cluster=cluster,
        max_lag=max_lag,
        by=recipe.by,
        who="fit_lagged",
        most_products=MOST_PRODUCTS,
    )


def _keys_for(recipe: Recipe) -> tuple[str, ...]:
    """Return the columns beside the formula's that a covariance needs."""
    if recipe.cov == "hac":
        return TOKEN_KEYS
    return (recipe.cluster,) if recipe.cov in ("auto", *CLUSTERED) else ()


def _lags_of(frame: pd.DataFrame, recipe: Recipe) -> int:
    """Return how far back products are needed: 1 for the statistics, more for Newey-West."""
    if recipe.cov != "hac":
        return 1
    longest = int(frame["position"].max() - frame["position"].min()) + 1
    lags = int(4 * (longest / 100) ** (2 / 9)) if recipe.hac_lags is None else int(recipe.hac_lags)
    return max(1, min(lags, longest - 1))


def _recipe(formula: str, cov: str, cluster: str, hac_lags: int | None, conf_level: float) -> Recipe:
    """Return the options, checked."""
    require_option(cov, get_args(Cov), name="cov")
    require_conf_level(conf_level)
    if hac_lags is not None:
        require_whole_number(hac_lags, name="hac_lags", least=0, most=MAX_LAGS)
        if cov != "hac":
            raise InputError(f"hac_lags={hac_lags} needs cov='hac'; got cov={cov!r}.")
    if statsmodels.formula.options.formula_engine != "patsy":
        raise InputError(
            "fit_lagged needs patsy's formulas; set statsmodels.formula.options.formula_engine = 'patsy' "
            "and leave SM_FORMULA_ENGINE unset."
        )
    return Recipe(formula, formula_columns(formula), cov, cluster, hac_lags, float(conf_level))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LaggedFits:
    """The fits of one formula: ``coefficients``, ``statistics``, and statsmodels' text on demand.

    Attributes
    ----------
    coefficients : pandas.DataFrame
        One row a term: model, hook, layer, (head,) depth, term, estimate, std_error, statistic (t), df of that t,
        p_value, conf_low, conf_high, p_adjusted, n, n_docs, n_dropped, r_squared, adj_r_squared, cov_type.
        ``n_docs`` is 0 where the frame has no ``doc``, ``depth`` NaN where it has none.
    statistics : pandas.DataFrame
        One row a fit, all from the nonrobust fit: F, AIC, BIC, residual_sd; Breusch-Godfrey of order 1 (the
        residual before is 0 at a window's start) and Durbin-Watson, neither across windows, NaN where the frame
        lacks doc, window or position; Koenker's Breusch-Pagan, NaN without an intercept; Jarque-Bera. With a lagged
        outcome, serial correlation that Breusch-Godfrey finds in the residuals biases the coefficients. They are then
        predictive, not structural, whatever the covariance.
    """

    coefficients: pd.DataFrame
    statistics: pd.DataFrame
    _recipe: Recipe
    _frame: pd.DataFrame
    _sums: LagSums | None

    @cached_property
    def sums(self) -> LagSums:
        """The sums by document: other covariances, refits and comparisons start from them, not from the rows.

        They are those that the tables were made of, and summed on first use where the fit has no clusters or others.
        """
        if self._sums is not None and self._sums.cluster == "doc":
            return self._sums
        return _sums(self._frame, self._recipe, cluster="doc", max_lag=None)

    @cached_property
    def _places(self) -> tuple[Place, ...]:
        return tuple(split(self._frame, by=self._recipe.by, who="LaggedFits"))

    @property
    def formula(self) -> str:
        """The formula, as it was given."""
        return self._recipe.formula

    @property
    def by(self) -> tuple[str, ...]:
        """The columns by whose values there are fits of their own."""
        return self._recipe.by

    def summary(
        self,
        *,
        model: str | None = None,
        layer: int | None = None,
        hook: str | None = None,
        head: int | None = None,
        **by: Any,
    ) -> str:
        """Return statsmodels' own summary text of one fit, made anew from the frame that was fitted.

        What the fits have only one of may be left out; columns of ``by=`` are named as they are (``pos="NOUN"``).
        Its Durbin-Watson runs over all rows, across windows. A last line says where its F-statistic, whose covariance
        has at most one direction less than there are clusters, is no test of all terms.

        Raises
        ------
        InputError
            No such fit, or more than one.
        """
        found = list(self._places)
        unknown = [key for key in by if key not in self._recipe.by]
        if unknown:
            raise InputError(f"summary knows no {unknown[0]!r}; the fits are by {list(self._recipe.by)}.")
        named = {"model": model, "hook": hook, "layer": layer, "head": head}
        for key, asked in (named | dict.fromkeys(self._recipe.by) | by).items():
            have = list(dict.fromkeys(place.keys[key] for place in found if key in place.keys))
            if asked is None and len(have) < 2:
                continue
            if not among(asked, have):
                came = "none was given" if asked is None else f"got {asked!r}"
                hint = did_you_mean(asked, have)
                raise InputError(f"summary needs {key}=, one of {have}; {came}.{hint}")
            found = [place for place in found if place.keys[key] == asked]
        group = read(self._frame, found[0], self._recipe)
        fit, kind = fit_with_covariance(group.model(self.formula), group, self._recipe)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "covariance of constraints does not have full rank")
            text = str(fit.summary(alpha=round(1 - self._recipe.conf_level, 12)))
        terms, clusters = int(fit.df_model), len(np.unique(group.cluster))
        if kind.startswith(tuple(CLUSTERED)) and terms > clusters - 1:
            text += (
                f"\n[mechreg] The F-statistic is no test of all {terms} terms at once: {clusters} clusters allow "
                f"{clusters - 1} at most.\nTerms one by one are not affected."
            )
        return text

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
        fitted, plain = {str(place): place for place in self._places}, self._recipe._replace(cov="nonrobust")
        new = np.full((2, len(lagged)), np.nan)
        for place in _fitted_places(self, lagged, who="augment"):
            group = read(lagged, place, plain)
            if not len(group.rows):
                continue
            learned = read(self._frame, fitted[str(place)], plain).data
            build = partial(matrices, self.formula, learned, group.data)
            outcome, design = evaluate(build, self.formula, where=str(place))
            is_here = (self.coefficients[list(place.keys)] == pd.Series(place.keys)).all(axis=1)
            predicted = design @ self.coefficients.loc[is_here, "estimate"].to_numpy()
            new[:, group.rows] = predicted, outcome - predicted
        return lagged.assign(predicted=new[0], residual=new[1])

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.coefficients["cov_type"]))
        models = ", ".join(dict.fromkeys(self.coefficients["model"]))
        return f"LaggedFits({self.formula!r}: {len(self.statistics)} fits of {models}; {kinds})"

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
    parts = []
    for place in _fitted_places(fits, lagged, who="lstsq_check"):
        model = read(lagged, place, fits._recipe._replace(cov="nonrobust")).model(fits.formula)
        solution = np.linalg.lstsq(model.exog, model.endog, rcond=None)[0]
        parts.append(
            pd.DataFrame({**place.keys, "term": model.exog_names, "lstsq": solution, "n": len(model.endog)})
        )
    keys = [*fits._places[0].keys, "term", "n"]
    both = fits.coefficients[[*keys, "estimate"]].merge(pd.concat(parts), on=keys, how="left")
    if both["lstsq"].isna().any():
        raise InputError(
            "lstsq_check needs the frame that was fitted; this one has other groups, terms or rows."
        )
    return both.drop(columns="n").assign(difference=both["estimate"] - both["lstsq"])


def _fitted_places(fits: LaggedFits, lagged: pd.DataFrame, *, who: str) -> list[Place]:
    """Return the places of a frame, all of which were fitted."""
    require(lagged, (*GROUP_KEYS, *fits._recipe.columns, *fits._recipe.by), who=who)
    places, fitted = split(lagged, by=fits._recipe.by, who=who), {str(place) for place in fits._places}
    for place in places:
        if str(place) not in fitted:
            raise InputError(f"{who} needs groups that were fitted; {place} was not.")
    return places
