"""Covariances: which one a group gets, what it needs of the group, and statsmodels' fit with it."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular
from statsmodels.base.covtype import descriptions
from statsmodels.stats.sandwich_covariance import weights_bartlett

from mechreg.regression.evaluation import require_finite
from mechreg.regression.statsmodels_groups import Group, Recipe, clusters_of
from mechreg.schema import InputError, NumericalError

# Beyond 1/sqrt(eps) the products of the columns, centred and scaled, are singular in double precision.
MAX_CONDITION = float(np.finfo(np.float64).eps ** -0.5)
# statsmodels works on the columns as they are. Against a fit on standardised columns its estimates were off by
# up to 1e-5 standard errors at a condition of 1e10; sums over clusters or windows, and the rank check inside
# its crv3, lose precision with the square: standard errors off by 2e-7 at 3e6, 1e-5 at 3e7, no answer at 7e7.
MAX_RAW_CONDITION = 1e10
MAX_RAW_CONDITION_OF_SUMS = 1e7
# Covariances of clusters, by statsmodels' names.
CLUSTERED = {"crv1": "cluster", "crv3": "cluster-crv3", "jackknife": "cluster-jk"}
# Relative spread below which a column is constant; 1e-16 is what rounding its mean leaves.
CONSTANT = 1e-12


def require_fittable(group: Group, recipe: Recipe) -> None:
    """Refuse a group whose numbers would be wrong or missing."""
    where, kind = group.place, covariance_of(group, recipe)
    if not len(group.rows):
        raise InputError(
            f"fit_lagged needs complete rows; {where} has none of {group.n_dropped}; give longer documents, or fewer "
            "lags."
        )
    require_finite(group.data.select_dtypes("float").items(), who="fit_lagged", where=str(where))
    model = group.model(recipe.formula)
    x, names = model.exog, model.exog_names
    columns = [(model.endog_names, model.endog), *zip(names, x.T, strict=True)]
    require_finite(columns, who="fit_lagged", where=str(where))
    if len(x) < len(names) + 2:
        raise InputError(
            f"fit_lagged needs at least {len(names) + 2} complete rows for {len(names)} terms; "
            f"{where} has {len(x)} ({group.n_dropped} dropped for missing values); give more text, or fewer terms."
        )
    # An intercept takes up the level of the other columns: what is left of them must vary.
    centred = np.array(["Intercept" in names and name != "Intercept" for name in names])
    scaled = x - x.mean(axis=0) * centred
    outcome = model.endog - model.endog.mean()
    of_terms = zip(names, x.T, scaled.T, strict=True)
    for name, column, left in [(model.endog_names, model.endog, outcome), *of_terms]:
        if np.linalg.norm(left) <= CONSTANT * np.linalg.norm(column):
            raise InputError(f"fit_lagged needs columns that vary; {name!r} is constant in {where}.")

    basis, triangle = np.linalg.qr(scaled / np.linalg.norm(scaled, axis=0))
    condition = np.linalg.cond(triangle)
    if not condition < MAX_CONDITION:
        raise NumericalError(
            f"fit_lagged needs terms that double precision can tell apart; in {where} they are collinear (condition "
            f"{condition:.1e} of the centred and scaled columns, at most {MAX_CONDITION:.1e}). Leave a term out."
        )
    raw = float(np.linalg.cond(np.linalg.qr(x, mode="r")))
    most = MAX_RAW_CONDITION_OF_SUMS if kind in ("hac", *CLUSTERED) else MAX_RAW_CONDITION
    if not raw < most:
        raise NumericalError(
            f"cov={kind!r} needs columns of like size and level; in {where} their condition is {raw:.1e}, at most "
            f"{most:.0e}. Write center(x) or standardize(x) in the formula."
        )
    if kind in CLUSTERED:
        _require_clusters(group, recipe, basis, kind=kind, spare=raw / most)
    elif kind in ("hc2", "hc3") and (basis**2).sum(axis=1).max() > 1 - 1e-10:
        raise NumericalError(
            f"cov={kind!r} divides by 1 - leverage; in {where} a row has a term for itself. Use cov='hc1'."
        )
    elif kind == "hac":
        same_window = np.diff(group.window) == 0
        if not same_window.any():
            raise InputError(f"cov='hac' needs a window with two complete rows or more; {where} has none.")
        if (same_window & ~group.follows[1:]).any():
            raise InputError(
                f"cov='hac' needs windows without gaps; {where} lacks rows inside one. Use cov='crv3'."
            )


def _require_clusters(group: Group, recipe: Recipe, basis: np.ndarray, *, kind: str, spare: float) -> None:
    """Refuse one cluster, and for crv3 and jackknife a cluster without which the terms are collinear."""
    if len(group.cluster_names) < 2:
        raise InputError(
            f"cov={kind!r} needs at least two clusters; {group.place} has one {recipe.cluster!r}. Use cov='auto'."
        )
    if kind == "crv1":
        return
    # In an orthonormal basis the products without cluster g are 1 - Q_g'Q_g: its smallest eigenvalue.
    left = [1 - float(np.linalg.norm(rows, 2)) ** 2 for rows in clusters_of(basis, group.cluster)]
    if max(min(left), 0.0) <= spare**2:
        raise NumericalError(
            f"cov={kind!r} fits without each cluster in turn; in {group.place} the terms are collinear without "
            f"{recipe.cluster} {group.cluster_names[int(np.argmin(left))]}. Use cov='crv1', or leave a term out."
        )


def covariance_of(group: Group, recipe: Recipe) -> str:
    """Return the covariance that a group gets: "auto" depends on its clusters."""
    if recipe.cov != "auto":
        return recipe.cov
    return "crv3" if len(group.cluster_names) > 1 else "nonrobust"


def fit_with_covariance(model: Any, group: Group, recipe: Recipe) -> tuple[Any, str]:
    """Return statsmodels' result and the name of its covariance, as the tables give it."""
    kind = covariance_of(group, recipe)
    options: dict[str, Any] = {}
    if kind == "nonrobust":
        cov_type, label = "nonrobust", "nonrobust"
        if recipe.cov == "auto":
            label = f"nonrobust (single {'document' if recipe.cluster == 'doc' else recipe.cluster})"
    elif kind in CLUSTERED:
        cov_type = "cluster"
        label = kind if recipe.cluster == "doc" else f"{kind} ({recipe.cluster})"
        options = {"groups": group.cluster}
    elif kind == "hac":  # statsmodels' plain HAC would cross windows
        longest = int(np.bincount(group.window).max())
        usual = min(int(4 * (longest / 100) ** (2 / 9)), longest - 1)
        lags = usual if recipe.hac_lags is None else int(recipe.hac_lags)
        cov_type, label = "hac-panel", f"hac({lags})"
        options = {
            "groups": group.window,
            # Beyond the longest window there are no pairs and statsmodels raises; the weights stay those of `lags`.
            "maxlags": min(lags, longest - 1),
            "kernel": lambda last: weights_bartlett(lags)[: last + 1],
            "use_correction": "hac",
            "df_correction": False,
        }
    else:
        cov_type, label = kind.upper(), kind
    fit = model.fit(cov_type=cov_type, cov_kwds=options, use_t=True)
    if kind in ("crv3", "jackknife"):  # statsmodels' own takes the square of the number of clusters
        results = fit._results  # `fit` wraps them
        results.cov_type = CLUSTERED[kind]
        results.cov_kwds["description"] = descriptions[CLUSTERED[kind]]
        results.cov_params_default = _covariance_without(fit, group.cluster, about_mean=kind == "jackknife")
    return fit, label


def _covariance_without(
    fit: Any, cluster: Int[np.ndarray, " rows"], *, about_mean: bool
) -> Float[np.ndarray, "terms terms"]:
    """Return (G-1)/G times the sum of squares of what leaving each cluster out changes."""
    basis, triangle = np.linalg.qr(fit.model.exog)
    unit = np.eye(len(triangle))
    residual = np.asarray(fit.resid)
    moved = np.array(
        [
            np.linalg.solve(unit - rows.T @ rows, rows.T @ errors)
            for rows, errors in zip(clusters_of(basis, cluster), clusters_of(residual, cluster), strict=True)
        ]
    )
    moved = moved - moved.mean(axis=0) if about_mean else moved
    change = solve_triangular(triangle, moved.T)
    return (len(moved) - 1) / len(moved) * change @ change.T
