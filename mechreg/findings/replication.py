"""A finding run again: models and texts in, published against obtained out."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechreg.corpus import read_corpus, tokenize
from mechreg.findings.finding import Finding, Settings
from mechreg.findings.gallery import FINDINGS
from mechreg.models import is_transformer_lens_model, load_model, record_of, require_loadable
from mechreg.schema import Backend, InputError, ModelError, require_option


def replicate(
    name: str,
    *,
    models: Any = None,
    documents: Any = None,
    backend: Backend = "auto",
    device: str = "auto",
    batch_tokens: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return what was published of a finding against what is obtained here, one row a model and quantity.

    Weights are processed, a BOS prepended and positions left out as the source did; `list_findings` says how.

    Parameters
    ----------
    name : str
        One of `list_findings`.
    models : model, name, path, or a sequence of them, optional
        Anything that `load_model` takes; by default the models that the source is about. Others, such as the
        miniatures, run through the same code and have no published value. A published value is found by a model's
        name, of a folder by the folder's.
    documents : documents frame, list of str, or path, optional
        What `read_corpus` takes or gives; the demo corpus by default. Where a number is one of a certain text
        (the loss on OpenWebText), it is compared only on that text.
    backend : {"auto", "hooked", "bridge"}
    device : str
    batch_tokens : int
        Tokens in a batch, right padding included.
    seed : int
        Of what is drawn: the random tokens of sink_rate.
    progress : bool
        A bar on standard error, where that is a terminal.

    Returns
    -------
    pandas.DataFrame
        finding, model, quantity, published and tolerance (NaN where only a direction was published, or nothing),
        low and high (what lies between them agrees), obtained, agrees (missing where nothing was published).

    Raises
    ------
    InputError
        No such finding, a model or text that cannot be used, or a loaded model of other processing.
    ModelError
        The weights are not to be had: names the model, before any other is run.

    Examples
    --------
    >>> table = replicate("baseline_ce", models="mini-s", documents=["The cat sat on the mat."])
    >>> table[["quantity", "agrees"]].values.tolist()
    [['loss_hello_world', <NA>], ['loss', <NA>]]
    """
    require_option(name, list(FINDINGS), name="name")
    finding = FINDINGS[name]
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InputError(f"batch_tokens must be a positive whole number; got {batch_tokens!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number, 0 or more; got {seed!r}.")
    entries = list(finding.models) if models is None else _as_list(models)
    for entry in entries:
        _require_usable(finding, entry, backend)
    settings = Settings(batch_tokens=batch_tokens, seed=seed, progress=progress)
    texts = read_corpus("demo" if documents is None else documents)
    frames = []
    for entry in entries:
        model = _loaded(finding, entry, backend, device)
        tokens = tokenize(model, texts, prepend_bos=finding.prepend_bos, n_ctx=finding.n_ctx)
        obtained = finding.measure(model, tokens, settings)
        frames.append(finding.compare(record_of(model).name, documents, obtained))
        del model
        if not is_transformer_lens_model(entry):
            gc.collect()  # TransformerLens' models refer to themselves; the next one needs the room
    return pd.concat(frames, ignore_index=True)


def _as_list(models: Any) -> list[Any]:
    is_many = isinstance(models, Iterable) and not isinstance(models, str | torch.nn.Module)
    entries = list(models) if is_many else [models]
    if not entries:
        raise InputError("replicate needs at least one model; got an empty list.")
    return entries


def _require_usable(finding: Finding, entry: Any, backend: Backend) -> None:
    """Check all that can be known of a model before its weights are read."""
    if isinstance(entry, str | Path):
        try:
            require_loadable(entry, backend=backend)
        except ModelError as error:
            raise _lacking(finding, entry, error) from error
    elif is_transformer_lens_model(entry) and record_of(entry).processing != finding.processing:
        raise InputError(
            f"{finding.name} is measured with processing={finding.processing!r}, and {record_of(entry).name} was "
            f"loaded with {record_of(entry).processing!r}; give its name or folder, and it is loaded rightly."
        )


def _loaded(finding: Finding, entry: Any, backend: Backend, device: str) -> Any:
    if is_transformer_lens_model(entry):
        return entry
    try:
        return load_model(entry, backend=backend, processing=finding.processing, device=device)
    except ModelError as error:
        raise _lacking(finding, entry, error) from error


def _lacking(finding: Finding, entry: Any, error: ModelError) -> ModelError:
    wanted = f"the weights of {entry}" if isinstance(entry, str | Path) else "this model"
    return ModelError(
        f"{finding.name} needs {wanted}: {error} Give a folder that holds them, or run the same code without a "
        "published value: models=['mini-s', 'mini-m'] (--models mini-s,mini-m)."
    )
