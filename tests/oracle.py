"""Statsmodels as the oracle: the tables of `fit_lagged` made group after group from the rows."""

from types import SimpleNamespace

from mechreg.regression.fits import _recipe
from mechreg.regression.statsmodels_tables import statsmodels_tables


def by_statsmodels(
    lagged,
    formula="log_norm ~ lag1 + lag2",
    *,
    cov="auto",
    adjust="bh",
    cluster="doc",
    by=(),
    hac_lags=None,
    conf_level=0.95,
):
    """Return an object with the coefficients and statistics that statsmodels gives."""
    recipe = _recipe(formula, cov, cluster, hac_lags, conf_level)._replace(by=tuple(by))
    coefficients, statistics = statsmodels_tables(lagged, recipe, adjust)
    return SimpleNamespace(coefficients=coefficients, statistics=statistics)
