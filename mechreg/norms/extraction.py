"""Texts and models in, a tidy norm frame out."""

import gc
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from mechreg.corpus import COVARIATES, read_corpus, tokenize
from mechreg.frames import by_hook, norm_frame, stacked
from mechreg.models import is_transformer_lens_model, load_model, model_label, record_of
from mechreg.norms.covariates import covariate_columns
from mechreg.norms.measures import known_measures
from mechreg.norms.reduction import BATCH_TOKENS, known_hooks, window_norms
from mechreg.outside import any_frames
from mechreg.schema import InputError, one_or_many, require_names, require_shared


@any_frames
def extract_norms(
    models: Any,
    documents: Any,
    *,
    hooks: Sequence[str] = ("attn_out",),
    measures: Sequence[str] = ("norm",),
    direction: Any = None,
    batch_tokens: int = BATCH_TOKENS,
    prepend_bos: bool = False,
    covariates: Sequence[str] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Return the L2 norm of one vector per token at every layer of the hook points, for one or several models.

    Everything is measured inside the hooks, so that memory grows with the tokens and not with d_model x tokens, and a
    pass ends after the last hook point, before the logits. Attention is torch's kernel, as in Hugging Face's own
    default, wherever there is one and nothing reads its scores (`mechreg.models.fused`).

    Parameters
    ----------
    models : model, name, path, or a sequence of them
        Anything that `load_model` takes. Names and paths are loaded when their turn comes and freed after it.
    documents : documents frame, list of str, path, or token frame
        What `read_corpus` takes or gives, or what `tokenize` gives (its windows are then taken as they are).
    hooks : sequence of str
        Of resid_pre, attn_out, resid_mid, mlp_out, resid_post (one vector of d_model per token), z and result
        (one per head: the frame then has a ``head`` column, -1 at the other hooks).
    measures : sequence of str
        Columns beside ``norm``, which is always there. "relative": length over that of the stream that an update is
        added to (resid_pre; for mlp_out resid_mid, where blocks have it); "cos_resid": cosine with that stream;
        "cos_previous": with the token before; "cos_layer_below": with the layer below; "cos_mlp": of attention and MLP
        of one block; "step": length of resid_post - resid_pre; "projection": on ``direction``. NaN at a window's first
        token, in the first layer, and where a vector is 0.
    direction : array of d_model numbers, or dict of them by layer, optional
        For "projection", in units of its length; NaN in layers that a dict leaves out.
    batch_tokens : int
        Tokens in a batch, right padding included; a window longer than this is a batch of its own.
    prepend_bos : bool
    covariates : sequence of "surprisal", "log_frequency", "is_repeat", "distance"
        Columns as in `token_covariates`, from the same pass. For surprisal it goes on to the logits, a few tokens at a
        time: on GPT-2's shapes a pass then takes 1.8 times as long.
    progress : bool
        A bar on standard error, where that is a terminal.

    Returns
    -------
    pandas.DataFrame
        The norm frame: model, hook, layer, (head,) depth, doc, window, position, token_id, norm and further measures
        (float32), and the covariates.

    Raises
    ------
    InputError, ModelError, NumericalError
        An unknown hook, a measure that is not one of it, no model, two of one name, or documents that cannot be used; a
        hook point that did not fire exactly once in a layer, dropout, or ``result`` that is not what heads add; an
        activation that is NaN or infinite, with its place.

    Examples
    --------
    >>> norms = extract_norms("mini-s", ["The cat sat on the mat and looked at the moon."])
    >>> norms.groupby("layer").size().nunique(), float(norms["depth"].min())
    (1, 0.125)
    """
    hooks = known_hooks(hooks)
    measures = known_measures(measures, hooks, direction)
    require_shared(batch_tokens=batch_tokens)
    covariates = require_names(covariates, COVARIATES, name="covariates", least=0)
    entries = as_models(models, who="extract_norms")
    _require_distinct([model_label(entry) for entry in entries])
    are_tokens = isinstance(documents, pd.DataFrame) and "token_id" in documents.columns
    if are_tokens and prepend_bos:
        raise InputError("prepend_bos=True is for texts; tokenize(..., prepend_bos=True) makes such windows.")
    if not isinstance(documents, pd.DataFrame):
        documents = read_corpus(documents)
    frames: list[pd.DataFrame] = []
    for entry in entries:
        model = load_model(entry)
        tokens = documents if are_tokens else tokenize(model, documents, prepend_bos=prepend_bos)
        values = window_norms(
            model,
            tokens,
            hooks=hooks,
            measures=measures,
            direction=direction,
            batch_tokens=batch_tokens,
            surprisal="surprisal" in covariates,
            progress=progress,
        )
        tokens = tokens.assign(**covariate_columns(tokens, covariates, values.pop("surprisal", None)))
        about: dict[str, Any] = {"model": record_of(model).name, "covariates": covariates}
        frames += [norm_frame(tokens, arrays, hook=hook, **about) for hook, arrays in by_hook(values).items()]
        del model, values
        if not is_transformer_lens_model(entry):
            gc.collect()  # TransformerLens' models refer to themselves; the next one needs the room
    return stacked(frames)


def as_models(models: Any, *, who: str) -> list[Any]:
    """Return models as a list; a module, which may be iterable, is one."""
    entries = [models] if isinstance(models, torch.nn.Module) else one_or_many(models)
    if not entries:
        raise InputError(f"{who} needs at least one model; got an empty list.")
    return entries


def _require_distinct(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"Two models are called {name!r}, and their norms would be mixed; load one with "
                "load_model(..., name=), or set cfg.model_name of one that you made yourself."
            )
