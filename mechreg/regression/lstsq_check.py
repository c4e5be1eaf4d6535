"""Every estimate beside the one of another algorithm."""

import numpy as np
import pandas as pd

from mechreg.outside import any_frames
from mechreg.regression.fits import LaggedFits
from mechreg.schema import InputError


@any_frames
def lstsq_check(fits: LaggedFits, lagged: pd.DataFrame) -> pd.DataFrame:
    """Return every estimate beside the one that ``numpy.linalg.lstsq`` gives on the same design.

    Parameters
    ----------
    fits, lagged : LaggedFits, pandas.DataFrame
        The fits, and the frame that was fitted.

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
    >>> from mechreg.regression import fit_lagged
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
        raise InputError("lstsq_check needs the frame that was fitted; this has other groups, terms or rows.")
    check = check.merge(pd.concat(parts), on=[*keys, "term"], how="left")
    return check.assign(difference=check["estimate"] - check["lstsq"])
