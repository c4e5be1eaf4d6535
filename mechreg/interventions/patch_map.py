"""Activation patching of a pair of prompts: every layer and position of one put into the other, one at a time."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.corpus import tokenize
from mechreg.forward import Batch, Window, chunks, padded, token_bar
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.effects import BATCH_TOKENS, token_id
from mechreg.interventions.passes import Edited, Outcome, Passes, Site
from mechreg.models import WHOLE_HOOKS, Model, load_model
from mechreg.norms import known_layers
from mechreg.schema import InputError, require_option, require_shared


def patch_map(
    model: Any,
    corrupted: str,
    source: str,
    *,
    target: str | int | np.ndarray | Tensor | None = None,
    foil: str | int | np.ndarray | Tensor | None = None,
    hook: str = "resid_pre",
    layers: int | Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> pd.DataFrame:
    """Return how much of one prompt's answer comes back when one vector of it is put into another prompt.

    The corrupted prompt runs once for each layer and position, with the source's vector there. The answer is the logit
    of the target less that of the foil, after the last token. ``plot_heatmap(map, value="restored")`` draws it.

    Parameters
    ----------
    model : model, name or path
    corrupted, source : str
        Two prompts of as many tokens: the one that runs, and the one whose vectors are put into it.
    target, foil : str, int, array or tensor of one number, optional
        Tokens, as text or as id. By default the likeliest next token of the source, and that of the corrupted prompt.
    hook, layers, batch_tokens, progress
        As for `intervene`; no hook of heads.

    Returns
    -------
    pandas.DataFrame
        One row a layer and position: model, hook, layer, depth, doc (target and foil), window, position, token (of the
        corrupted prompt, and of the source where it is another), logit_difference (with the patch), corrupted and clean
        (that of both prompts as they are), restored: 0 at the corrupted prompt's, 1 at the source's.

    Raises
    ------
    InputError, ModelError
        As `intervene`; prompts of unequal length, or as much of the answer in both.

    Notes
    -----
    Zhang and Nanda (2024), "Towards best practices of activation patching in language models".

    Examples
    --------
    >>> found = patch_map("mini-s", "The dog sat on the", "The cat sat on the", target=" house", foil=" water")
    >>> found.query("layer == 0")["restored"].abs().round(3).tolist()[0], len(found) == 4 * found["position"].nunique()
    (0.0, True)
    """
    model = load_model(model)
    require_option(hook, WHOLE_HOOKS, name="hook")
    require_shared(batch_tokens=batch_tokens)
    passes = Passes(model, hook=hook, norm_hook=hook, norms=False)
    chosen = known_layers(model, layers)
    tokens, theirs = _pair(model, corrupted, source)
    alone = (padded(model, prompt, [Window(0, len(prompt))]) for prompt in (tokens, theirs))
    own, others = (_last_logits(passes, passes.run(batch.ids), batch)[0] for batch in alone)
    ids = [
        int(logits.argmax()) if given is None else token_id(model, given, name=name)
        for name, given, logits in (("target", target, others), ("foil", foil, own))
    ]
    names = [model.tokenizer.decode([one]) for one in ids]
    low, high = (float(logits[ids[0]] - logits[ids[1]]) for logits in (own, others))
    if not np.isfinite(high - low) or high == low:
        raise InputError(
            f"patch_map needs prompts that differ in the logit of {names[0]!r} less that of {names[1]!r}; they have "
            f"{low:.3g} and {high:.3g}. Give target= and foil=, or other prompts."
        )
    clean = CleanRun(model, theirs, hook, [Site(layer) for layer in chosen], len(theirs), 0)
    values = _patched(passes, tokens, clean, ids, batch_tokens=batch_tokens, progress=progress)
    is_same = tokens["token"] == theirs["token"]
    label = tokens["token"].where(is_same, tokens["token"] + " / " + theirs["token"])
    at, position = (part.ravel() for part in np.indices(values.shape))
    columns = {
        "model": passes.name,
        "hook": hook,
        "layer": np.array(chosen)[at],
        "depth": (np.array(chosen)[at] + 0.5) / passes.n_layers,
        "doc": f"{names[0].strip()} against {names[1].strip()}",
        "window": 0,
        "position": position,
        "token": label.to_numpy()[position],
        "logit_difference": values.ravel(),
        "corrupted": low,
        "clean": high,
        "restored": (values.ravel() - low) / (high - low),
    }
    return pd.DataFrame(columns)


def _patched(
    passes: Passes,
    tokens: pd.DataFrame,
    clean: CleanRun,
    ids: list[int],
    *,
    batch_tokens: int,
    progress: bool,
) -> Float[np.ndarray, "layer pos"]:
    """Return the difference of two logits with the source's vector in each place of the corrupted prompt."""
    vectors: dict[int, Tensor] = {}
    clean.visit(lambda site, rows, values: vectors.update({site.layer: values}))
    n = len(tokens)
    differences = np.empty((len(clean.sites), n))
    with token_bar(n * n * (len(clean.sites) + 1), progress) as bar:
        for places, batch in _one_position_a_row(passes.model, tokens, batch_tokens):
            before = passes.run(batch.ids, restart_at=[site.layer for site in clean.sites])
            bar.update(batch.ids.numel())
            place = batch.mask(batch.rows == places[:, None])
            for i, site in enumerate(clean.sites):
                edit = Edited(place, partial(_put, vectors[site.layer][places]))
                logits = _last_logits(passes, passes.run(batch.ids, {site: edit}, before), batch)
                differences[i, places] = (logits[:, ids[0]] - logits[:, ids[1]]).cpu().numpy()
                bar.update(batch.ids.numel())
    return differences


def _pair(model: Model, corrupted: Any, source: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    for name, text in {"corrupted": corrupted, "source": source}.items():
        if not isinstance(text, str):
            raise InputError(f"patch_map needs a text as {name}; got {type(text).__name__}.")
    tokens, theirs = (tokenize(model, [text]) for text in (corrupted, source))
    if tokens["window"].max() > 0:
        raise InputError(
            f"patch_map needs prompts of at most {model.cfg.n_ctx} tokens, one window; they have {len(tokens)}."
        )
    if len(tokens) != len(theirs):
        raise InputError(
            f"patch_map aligns two prompts by position, so they need as many tokens; they have {len(tokens)} "
            f"({tokens['token'].tolist()[:20]}) and {len(theirs)} ({theirs['token'].tolist()[:20]})."
        )
    return tokens, theirs


def _last_logits(passes: Passes, outcome: Outcome, batch: Batch) -> Float[Tensor, "batch d_vocab"]:
    at = np.zeros(batch.real.shape, bool)
    at[:, -1] = True
    hidden: Any = outcome.hidden
    return torch.cat([part for part, _ in chunks(passes.head, hidden, batch.mask(at))]).double()


def _put(own: Tensor, old: Tensor) -> Tensor:
    return own.to(old)


def _one_position_a_row(
    model: Model, tokens: pd.DataFrame, batch_tokens: int
) -> Iterator[tuple[Int[np.ndarray, " batch"], Batch]]:
    """Yield the prompt as often as it has positions, some of them a batch."""
    n = len(tokens)
    for places in np.array_split(np.arange(n), -(-n // max(1, batch_tokens // n))):
        yield places, padded(model, tokens, [Window(0, n)] * len(places))
