"""A finding measured again: models and texts in, published against obtained out."""

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg.corpus import read_corpus, tokenize
from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.published import FINDINGS
from mechreg.models import is_transformer_lens_model, load_model, record_of, require_loadable
from mechreg.norms.extraction import as_models
from mechreg.outside import any_frames
from mechreg.schema import Backend, InputError, ModelError, require_option, require_shared

_NUMBERS = ("published", "tolerance", "low", "high", "obtained")


@any_frames
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
        Anything that `load_model` takes; by default the models that the source reports. Others, such as the
        miniatures, run through the same code and have no published value. A published value is found by a model's
        name, for a folder by the folder's.
    documents : documents frame, list of str, or path, optional
        What `read_corpus` takes or gives; the demo corpus by default. A number that was published for a certain text
        (the loss on OpenWebText) is compared only on that text.
    prepend_bos : bool, optional
        By default as the source did; published values are compared only with that. Random tokens have none.
    seed : int
        For what is drawn: the random tokens of sink_rate.
    backend, device, batch_tokens, progress
        As for `load_model` and `extract_norms`.

    Returns
    -------
    pandas.DataFrame
        finding, model, quantity, published and tolerance (NaN where only a direction was published, or nothing),
        low and high (what lies between them agrees), obtained, agrees (missing where nothing was published), note
        (how the texts should have begun, "" where they began so).

    Raises
    ------
    InputError, ModelError
        No such finding, a model or text that cannot be used, or a loaded model of other processing; weights that could
        not be loaded, before any model is run.

    Examples
    --------
    >>> table = replicate("baseline_ce", models="mini-s", documents=["The cat sat on the mat."])
    >>> table[["quantity", "agrees"]].values.tolist()
    [['loss_hello_world', <NA>], ['loss', <NA>]]
    """
    require_option(name, list(FINDINGS), name="name")
    finding = FINDINGS[name]
    require_shared(batch_tokens=batch_tokens, seed=seed)
    if prepend_bos not in (None, True, False):
        raise InputError(f"prepend_bos must be True, False or None (as the source did); got {prepend_bos!r}.")
    bos = finding.prepend_bos if prepend_bos is None else bool(prepend_bos)
    entries = list(finding.models) if models is None else as_models(models, who="replicate")
    for entry in entries:
        _require_usable(finding, entry, backend)
    settings = Settings(batch_tokens=batch_tokens, seed=seed, progress=progress)
    texts = read_corpus("demo" if documents is None else documents)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        model = entry
        if not is_transformer_lens_model(entry):
            with _remedy(finding, entry):
                model = load_model(entry, backend=backend, processing=finding.processing, device=device)
        tokens = tokenize(model, texts, prepend_bos=bos, n_ctx=finding.n_ctx)
        quantities = finding.measure(model, tokens, settings)
        label = {"finding": finding.name, "model": record_of(model).name, "note": _note(finding, model, bos)}
        as_published = finding.claims if bos == finding.prepend_bos else ()
        claims = [claim for claim in as_published if claim.holds_for(record_of(model).name, documents)]
        rows += [label | row for row in _compared(quantities, claims)]
        del model
        if not is_transformer_lens_model(entry):
            gc.collect()  # TransformerLens' models refer to themselves; the next one needs the memory
    columns = ["finding", "model", "quantity", *_NUMBERS, "agrees", "note"]
    dtypes = dict.fromkeys(_NUMBERS, "float64") | {"agrees": "boolean"}
    return pd.DataFrame(rows, columns=columns).astype(dtypes)


def _compared(quantities: Mapping[str, float], claims: list[Claim]) -> list[dict[str, Any]]:
    """Return a row a quantity: obtained against the claim about it, if there is one."""
    rows = []
    by_quantity = {claim.quantity: claim for claim in claims}
    for quantity, number in quantities.items():
        row = dict.fromkeys(_NUMBERS, math.nan) | {"quantity": quantity, "obtained": number, "agrees": None}
        if claim := by_quantity.get(quantity):
            row["low"], row["high"] = claim.interval
            row["agrees"] = claim.agrees(number)
            if claim.value is not None:
                row |= {"published": claim.value, "tolerance": claim.tolerance}
        rows.append(row)
    return rows


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
        with _remedy(finding, entry):
            require_loadable(entry, backend=backend)
    elif is_transformer_lens_model(entry) and record_of(entry).processing != finding.processing:
        raise InputError(
            f"{finding.name} is measured with processing={finding.processing!r}, and {record_of(entry).name} was "
            f"loaded with {record_of(entry).processing!r}; give its name or folder instead of the loaded model."
        )


@contextmanager
def _remedy(finding: Finding, entry: Any) -> Iterator[None]:
    """Say, where a model cannot be loaded, which finding needs it and what to do."""
    try:
        yield
    except ModelError as error:
        wanted = f"the weights of {entry}" if isinstance(entry, str | Path) else "this model"
        raise ModelError(
            f"{finding.name} needs {wanted}: {error} Give a folder that holds them, or run the same code without a "
            "published value: models=['mini-s', 'mini-m'] (--models mini-s,mini-m)."
        ) from error
