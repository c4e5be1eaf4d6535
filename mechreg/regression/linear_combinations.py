"""A linear combination of coefficients, such as the sum of the lags, in every fit."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from patsy import DesignInfo, PatsyError

from mechreg.regression.clusters import Clusters, effective_df, left_out
from mechreg.regression.fits import LaggedFits
from mechreg.regression.lag_sums import LagSums, SumsCov
from mechreg.regression.results import Covariance, coefficient_frame
from mechreg.regression.second_look import across_clusters
from mechreg.regression.solve import Fit
from mechreg.schema import DEFAULT_COV, InputError, require_shared

# Covariances whose degrees of freedom every combination has of its own.
_OWN_DF = ("crv2", "crv3", "jackknife")


def linear_combination(
    fits: LaggedFits | LagSums, combination: str, *, cov: SumsCov = DEFAULT_COV, conf_level: float = 0.95
) -> pd.DataFrame:
    """Return a combination of coefficients of every fit, one row a fit, with the columns of the coefficient frame.

    Parameters
    ----------
    fits : LaggedFits or LagSums
    combination : str
        Of terms, in patsy's language: "lag1 + lag2", "lag1 - 2 * lag2".
    cov : str
        Of sums; fits have their own.
    conf_level : float

    Notes
    -----
    The covariance is that of the coefficients, and the degrees of freedom are the combination's own, as if it were a
    term of the formula; statsmodels' ``fits.result(layer=0).t_test("lag1 + lag2")`` takes the fewest of its terms.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(range(20), 9)})
    >>> frame["x"], frame["z"], noise = rng.normal(size=(3, 180))
    >>> sums = LagSums.from_frame(frame.assign(y=0.5 * frame["x"] + 0.2 * frame["z"] + 0.1 * noise), "y ~ x + z")
    >>> linear_combination(sums, "x + z")[["term", "estimate"]].round(1)
        term  estimate
    0  x + z       0.7
    """
    require_shared(conf_level=conf_level)
    across: dict[tuple, Clusters] = {}
    if isinstance(fits, LaggedFits):
        sums, known = fits._sums, fits._covariances
        solved = sums.solve()
        if any(covariance.kind in _OWN_DF for covariance in known.values()):
            across = across_clusters(solved, sums, fits._frame)
    elif isinstance(fits, LagSums):
        solved = fits.solve()
        known = dict(zip((fit.key for fit in solved), fits.covariances(cov), strict=True))
    else:
        raise InputError(f"linear_combination needs fits or LagSums; got {type(fits).__name__}.")
    both = [_combined(fit, known[fit.key], across.get(fit.key), combination) for fit in solved]
    combined, covariances = zip(*both, strict=True)
    return coefficient_frame(
        combined, covariances, adjust="bh", conf_level=float(conf_level), seed=0, by=fits.by
    )


def _combined(
    fit: Fit, covariance: Covariance, across: Clusters | None, combination: str
) -> tuple[Fit, Covariance]:
    """Return a fit whose only term is the combination, and its covariance."""
    solution = fit.solution
    weights = _weights(solution.names, combination)
    to_term = weights @ solution.to_terms
    df = covariance.df[:1]
    clusters = covariance.clusters if across is None else across
    if covariance.kind in _OWN_DF and clusters is not None:
        without = left_out(clusters, cov=covariance.kind, where=fit.where, cluster="cluster")
        df = effective_df(clusters, without, to_term)
    made = solution._replace(names=(combination,), estimate=weights @ solution.estimate, to_terms=to_term)
    return fit._replace(solution=made), covariance._replace(df=df)


def _weights(terms: tuple[str, ...], combination: str) -> Float[np.ndarray, "one terms"]:
    if not (isinstance(combination, str) and combination.strip()):
        raise InputError(f"linear_combination needs a text, such as 'lag1 + lag2'; got {combination!r}.")
    try:
        constraint = DesignInfo(terms).linear_constraint(combination)
    except PatsyError as error:
        raise InputError(f"{combination!r} is no combination of {list(terms)}: {error.message}.") from None
    if len(constraint.coefs) != 1 or constraint.constants.any():
        raise InputError(
            f"linear_combination needs a sum of terms, such as 'lag1 + lag2'; got {combination!r}."
        )
    return constraint.coefs
