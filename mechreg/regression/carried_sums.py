"""The sums that fits carry, for what compares or refits them."""

import numpy as np
import pandas as pd

from mechreg.regression.blocks import within_clusters
from mechreg.regression.design import terms_of
from mechreg.regression.fits import LaggedFits
from mechreg.regression.lag_sums import LagSums
from mechreg.schema import InputError


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


def within_documents(sums: LagSums) -> LagSums:
    """Return sums with documents' levels taken off, as of ``effects="doc"``, without a look at the rows.

    They are those of numbers alone, clustered by document; the residuals' statistics are not in them.
    """
    if not isinstance(sums, LagSums):
        raise InputError(f"within_documents needs LagSums; got {type(sums).__name__}.")
    within = LagSums(sums.formula, max_lag=None, by=sums.by, effects="doc")
    for key, group in sums._groups.items():
        is_plain = group.blocks is not None and group.terms is None and len(group.seen) == 1
        if is_plain:
            (weights,) = terms_of(sums.formula, group.seen).weights
            is_plain = np.array_equal(weights, np.eye(len(weights)))
        if sums.cluster != "doc" or sums.effects or not is_plain:
            raise InputError(
                f"within_documents needs sums by document, of numbers, without effects; those of {sums.formula!r} are "
                "not. Make them with effects='doc'."
            )
        assert group.blocks is not None
        within._groups[key] = group._replace(blocks=within_clusters(group.blocks))
    return within
