"""Covariates of tokens: their surprisal under a model, their frequency, repeats and distance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg.corpus import COVARIATES, token_counts, tokenize
from mechreg.models import Model, load_model, record_of
from mechreg.norms.reduction import BATCH_TOKENS, window_norms
from mechreg.outside import any_frames
from mechreg.schema import InputError, require_names


@any_frames
def token_covariates(
    model: Any,
    documents: Any,
    *,
    covariates: Sequence[str] = COVARIATES,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> pd.DataFrame:
    """Return the token frame with covariates of every token.

    ``extract_norms(..., covariates=...)`` gives the same columns without passes of their own.

    Parameters
    ----------
    model : model, name or path
        Runs for "surprisal" only.
    documents, batch_tokens, progress
        As for `extract_norms`. A token frame keeps its columns (``pos``, ...).
    covariates : sequence of str
        "surprisal": -log p of the token given those before it in its window, in nats, NaN at position 0;
        "log_frequency": log of the token's share in these documents; "is_repeat": 1 where the document had the token
        before, else 0; "distance": tokens from the document's start, over all its windows.

    Returns
    -------
    pandas.DataFrame
        The token frame, with ``model`` where it has a surprisal, which is that model's own.

    Raises
    ------
    InputError, ModelError, NumericalError
        As `extract_norms`; an unknown covariate, or a column that exists already.

    Examples
    --------
    >>> tokens = token_covariates("mini-s", ["The cat sat on the mat and looked at the moon."])
    >>> bool(tokens["surprisal"].iloc[1:].gt(0).all()), tokens["distance"].tolist() == tokens["position"].tolist()
    (True, True)
    """
    covariates = require_names(covariates, COVARIATES, name="covariates", least=0)
    model = load_model(model)
    tokens = token_frame(model, documents)
    new = [*covariates, "model"] if "surprisal" in covariates else [*covariates]
    replaced = [name for name in new if name in tokens.columns]
    if replaced:
        raise InputError(f"token_covariates would replace the columns {replaced}; drop them first.")
    surprisal = None
    if "surprisal" in covariates:
        values = window_norms(model, tokens, batch_tokens=batch_tokens, surprisal=True, progress=progress)
        surprisal = values["surprisal"]
        tokens = tokens.assign(model=pd.Categorical([record_of(model).name]).repeat(len(tokens)))
    return tokens.assign(**covariate_columns(tokens, covariates, surprisal))


@any_frames
def token_frame(model: Model, documents: Any) -> pd.DataFrame:
    """Return the token frame of documents, or the frame itself where it is one."""
    are_tokens = isinstance(documents, pd.DataFrame) and "token_id" in documents.columns
    return documents if are_tokens else tokenize(model, documents)


def covariate_columns(
    tokens: pd.DataFrame, covariates: Sequence[str], surprisal: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the covariates asked for, in that order, the surprisal as it is given."""
    counted = token_counts(tokens, covariates=[name for name in covariates if name != "surprisal"])
    return {
        name: np.asarray(surprisal) if name == "surprisal" else counted[name].to_numpy()
        for name in covariates
    }
