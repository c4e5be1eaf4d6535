"""The sums that fits carry, for what compares or refits them."""

import pandas as pd

from mechreg.regression.fits import LaggedFits
from mechreg.regression.lag_sums import LagSums
from mechreg.schema import InputError


def sums_by_document(fits: LaggedFits | LagSums, *, who: str, by: bool = False) -> LagSums:
    """Return the sums by document of fits, or the sums that are given; ``by`` lets fits by columns through."""
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
