"""A finding run again: models and texts in, published against obtained out."""

import gc
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg.corpus import read_corpus, tokenize
from mechreg.findings.finding import Finding, Settings
from mechreg.findings.gallery import FINDINGS
from mechreg.models import is_transformer_lens_model, load_model, record_of, require_loadable
from mechreg.norms.extraction import as_models
from mechreg.schema import Backend, InputError, ModelError, require_option, require_whole_number


def replicate(
    name: str,
    *,
    models: Any = None,
    documents: Any = None,
    prepend_bos: bool | None = None,
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
    prepend_bos : bool, optional
        By default as the source did; published values are compared only with that. Random tokens have none.
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
        low and high (what lies between them agrees), obtained, agrees (missing where nothing was published), note
        (whether the texts began as those that the model was trained on, "" where they did).

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
    require_whole_number(batch_tokens, name="batch_tokens")
    require_whole_number(seed, name="seed", least=0)
    if prepend_bos not in (None, True, False):
        raise InputError(f"prepend_bos must be True, False or None (as the source did); got {prepend_bos!r}.")
    bos = finding.prepend_bos if prepend_bos is None else bool(prepend_bos)
    entries = list(finding.models) if models is None else as_models(models, who="replicate")
    for entry in entries:
        _require_usable(finding, entry, backend)
    settings = Settings(batch_tokens=batch_tokens, seed=seed, progress=progress)
    texts = read_corpus("demo" if documents is None else documents)
    frames = []
    for entry in entries:
        model = _loaded(finding, entry, backend, device)
        tokens = tokenize(model, texts, prepend_bos=bos, n_ctx=finding.n_ctx)
        obtained = finding.measure(model, tokens, settings)
        said: Any = {"as_published": bos == finding.prepend_bos, "note": _note(finding, model, bos)}
        frames.append(finding.compare(record_of(model).name, documents, obtained, **said))
        del model
        if not is_transformer_lens_model(entry):
            gc.collect()  # TransformerLens' models refer to themselves; the next one needs the room
    return pd.concat(frames, ignore_index=True)


def _note(finding: Finding, model: Any, bos: bool) -> str:
    """Return what a reader must know of how the texts began."""
    name = record_of(model).name
    if not bos and getattr(model.cfg, "tokenizer_prepends_bos", False):
        return (
            f"{name}'s tokenizer begins every text with BOS, so the model was most likely trained with it, and these "
            "numbers without one say little of it; compare prepend_bos=True (--bos)."
        )
    if bos != finding.prepend_bos:
        with_or_without = "with" if finding.prepend_bos else "without"
        return f"The source measured {with_or_without} BOS, so its numbers are not compared with those of {name}."
    return ""


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
