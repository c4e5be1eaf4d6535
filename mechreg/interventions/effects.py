"""Effects: a model run clean and edited, layer by layer and dose by dose, to one tidy frame with intervals."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.corpus import read_corpus, tokenize
from mechreg.interventions.clean import CleanRun, padded
from mechreg.interventions.edits import Edit, require_seed
from mechreg.interventions.passes import Edited, Passes
from mechreg.interventions.places import Positions, chosen
from mechreg.interventions.plans import Plan, plan_of
from mechreg.interventions.tallies import document_means, next_token_changes
from mechreg.models import HOOK_POINTS, load_model
from mechreg.norms import Window, batches, next_token_losses, token_windows, vector_norms
from mechreg.schema import InputError, NumericalError, require_option

Measure = Literal["loss", "kl", "top1", "norms"]
Control = Literal["random_direction", "other_position", "other_layer"]

EFFECT_COLUMNS = (
    *("model", "hook", "layer", "depth", "edit", "dose", "control", "measure", "norm_hook", "measured_layer"),
    *("offset", "estimate", "std_error", "df", "conf_low", "conf_high", "clean", "n", "n_docs", "n_edited"),
)
BATCH_TOKENS = 1024  # logits of the clean and the edited pass live together: 0.4 GB with GPT-2's vocabulary


def intervene(
    model: Any,
    documents: Any,
    edit: Edit | Sequence[Edit],
    *,
    hook: str = "attn_out",
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    measure: Sequence[str] = ("loss", "kl", "top1", "norms"),
    controls: Sequence[str] = (),
    together: bool = False,
    norm_hook: str | None = None,
    max_offset: int = 8,
    batch_tokens: int = BATCH_TOKENS,
    conf_level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return what an edit of one hook point changes downstream: in the next token, and in the norms that follow.

    Every batch runs clean once, then once for each layer, edit and control, in the same shape and order.
    Counted are the tokens that an edit can reach: those at and after the first edited token of their window.

    Parameters
    ----------
    model : model, name or path
        Anything that `load_model` takes.
    documents : documents frame, list of str, path, or token frame
        What `read_corpus` takes or gives, or what `tokenize` gives, with any further columns.
    edit : Scale, Rotate, Ablate, SetNorm, or a sequence of them
        A sequence gives the doses.
    hook : str
        resid_pre, attn_out, resid_mid (not on a bridge), mlp_out or resid_post: where the edit is made.
    layers : sequence of int, optional
        Edited one at a time; all layers by default.
    positions : "all", "first", int, str or function
        All tokens; position 0; every k-th token (positions k, 2k, ...); a column of booleans of the token frame;
        or a function of the token frame that gives booleans: ``lambda tokens: tokens["pos"] == "NOUN"``.
    measure : sequence of "loss", "kl", "top1", "norms"
        Change of the next token's cross-entropy (nats); KL(clean || edited) (nats); share of tokens whose
        likeliest next token is another; change of the log norm at ``norm_hook`` in every later layer.
    controls : sequence of "random_direction", "other_position", "other_layer"
        As well as the edit itself: a change of the same size in a random direction; the same edit at as many
        other tokens of the window (never position 0); the same edit in another layer, drawn for each window.
    together : bool
        Edit all the layers in one pass: ``layer`` is then -1. Norms are what a layer computed before its own edit.
    norm_hook : str, optional
        Where norms are measured; by default at ``hook``.
    max_offset : int
        Effects are also given apart for tokens 0, 1, ... max_offset after the last edited token.
    batch_tokens : int
        Tokens in a batch, right padding included.
    conf_level : float
    seed : int
        For controls and `Ablate("resample")`; `Rotate` has its own.
    progress : bool
        A bar on standard error, where that is a terminal.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer (edited), depth, edit, dose, control ("none" for the edit itself), measure,
        norm_hook and measured_layer ("" and -1 but for norms), offset (-1: all tokens reached), estimate,
        std_error, df, conf_low, conf_high, clean (the measure's mean in the clean run: loss or log norm), n
        (tokens), n_docs, n_edited (vectors changed). An estimate is the mean over documents of their means,
        its interval t(n_docs - 1) of those; NaN with one document.

    Raises
    ------
    InputError
        An option that has no such value, no token chosen, or an edit that fits neither documents nor layers.
    ModelError
        A hook point is not there, an edit did not fire exactly once in a pass, or dropout is on.
    NumericalError
        An effect that is NaN or infinite; names the layer, document and position.

    Examples
    --------
    >>> from mechreg.interventions import Scale
    >>> effects = intervene("mini-s", ["The cat sat on the mat.", "It rained."], Scale(0.0), layers=[0])
    >>> effects.query("measure == 'kl' and offset == -1")["estimate"].gt(0).tolist()
    [True]
    """
    model = load_model(model)
    edits = _edits(edit)
    wanted = _names(measure, get_args(Measure), name="measure")
    checks = ["none", *_names(controls, get_args(Control), name="controls", least=0)]
    edited_layers = _layers(layers, int(model.cfg.n_layers))
    require_seed(seed)
    for name, value, least in (("batch_tokens", batch_tokens, 1), ("max_offset", max_offset, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{name} must be a whole number, {least} or more; got {value!r}.")
    require_conf_level(conf_level)
    if "other_layer" in checks and (together or int(model.cfg.n_layers) < 2):
        raise InputError("The control 'other_layer' needs a layer that is not edited; leave it out.")
    passes = Passes(model, hook=hook, norm_hook=norm_hook or hook, logits=set(wanted) != {"norms"})
    tokens = token_frame(model, documents)
    windows = token_windows(model, tokens)
    edited = chosen(tokens, positions)
    needed = range(passes.n_layers) if "other_layer" in checks else edited_layers
    clean = CleanRun(model, tokens, hook, list(needed), int(batch_tokens), int(seed))
    groups = [tuple(edited_layers)] if together else [(layer,) for layer in edited_layers]
    bound = [(one, one.bind(clean)) for one in edits]
    plans = [
        plan_of(clean, passes.n_layers, edited, group, one, done, control, int(max_offset))
        for group in groups
        for one, done in bound
        for control in checks
    ]
    touched = np.logical_or.reduce([plan.reached for plan in plans])
    windows = [window for window in windows if touched[window.rows].any()]
    with tqdm(
        total=sum(window.length for window in windows) * (len(plans) + 1),
        unit="tok",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for batch in batches(windows, int(batch_tokens)):
            _run_batch(passes, clean, batch, plans, wanted, bar)
    frame = pd.concat([_rows(plan, passes, wanted, conf_level) for plan in plans], ignore_index=True)
    return frame[list(EFFECT_COLUMNS)]


def token_frame(model: Any, documents: Any) -> pd.DataFrame:
    """Return the token frame of documents, or the frame itself where it is one.

    Examples
    --------
    >>> token_frame(load_model("mini-s"), ["A cat."])["position"].tolist()[:2]
    [0, 1]
    """
    if isinstance(documents, pd.DataFrame) and "token_id" in documents.columns:
        return documents.reset_index(drop=True)
    return tokenize(model, documents if isinstance(documents, pd.DataFrame) else read_corpus(documents))


def require_conf_level(conf_level: object) -> None:
    """Check a confidence level.

    Raises
    ------
    InputError

    Examples
    --------
    >>> require_conf_level(0.95)
    """
    if not isinstance(conf_level, float) or not 0 < conf_level < 1:
        raise InputError(f"conf_level must lie between 0 and 1, for example 0.95; got {conf_level!r}.")


def _run_batch(
    passes: Passes,
    clean: CleanRun,
    batch: Sequence[Window],
    plans: Sequence[Plan],
    wanted: list[str],
    bar: Any,
) -> None:
    """Run one batch clean and by every plan, and add up what changed."""
    tokens = clean.tokens
    ids, rows, real = padded(clean.model, tokens, batch)
    n_real = sum(window.length for window in batch)
    doc = clean.docs[rows]
    has_next = np.zeros(rows.shape, bool)
    has_next[:, :-1] = real.numpy()[:, 1:]
    before = passes.clean(ids, restart_at={layer for plan in plans for layer in plan.masks})
    log_before = np.zeros(before.norms.shape)
    if "norms" in wanted:
        log_before = _logs(before.norms, real.numpy(), rows, tokens, "the clean run")
    losses = np.zeros((1, *rows.shape))
    if before.logits is not None and has_next.any():
        at_next = torch.from_numpy(has_next).to(ids.device)
        losses[0, has_next] = next_token_losses(before.logits, ids, at_next)
    bar.update(n_real)
    for plan in plans:
        masks = {layer: mask[rows] & real.numpy() for layer, mask in plan.masks.items()}
        masks = {layer: mask for layer, mask in masks.items() if mask.any()}
        reached = (plan.offset[rows] >= 0) & real.numpy()
        if masks:
            edits = {layer: _edited(plan, clean, rows, layer, mask) for layer, mask in masks.items()}
            after = passes.edited(ids, edits, before)
            where = f"{plan.edit.name} {plan.edit.dose:g}, layer {', '.join(map(str, plan.layers))}"
            if "norms" in wanted:
                change = _logs(after.norms, reached, rows, tokens, where) - log_before
                _add(plan, slice(3, None), reached, doc, rows, change, log_before)
            at = reached & has_next
            if before.logits is not None and after.logits is not None and at.any():
                change, mask = np.zeros((3, *rows.shape)), torch.from_numpy(at).to(ids.device)
                change[:, at] = next_token_changes(before.logits, after.logits, ids, mask)
                _require_finite(change, at, rows, tokens, where)
                clean_values = np.concatenate([losses, np.zeros((2, *rows.shape))])
                _add(plan, slice(0, 3), at, doc, rows, change, clean_values)
        bar.update(n_real)


def _edited(
    plan: Plan,
    clean: CleanRun,
    rows: Int[np.ndarray, "batch pos"],
    layer: int,
    mask: Bool[np.ndarray, "batch pos"],
) -> Edited:
    changed, parameter = rows[mask], next(iter(clean.model.parameters()))
    wide = torch.promote_types(parameter.dtype, torch.float32)  # what layer norms are computed in
    largest = torch.finfo(wide).max ** 0.5

    def change(vectors: Tensor) -> Tensor:
        edited = plan.apply(vectors, changed, layer)
        # A layer norm squares them; where that overflows it gives zeros, which would pass for an effect.
        fits = (
            vector_norms(einops.rearrange(edited, "rows d_model -> 1 rows d_model"))[0].cpu().numpy()
            < largest
        )
        _require(fits, changed, clean.tokens, f"{plan.edit.name} {plan.edit.dose:g}, layer {layer}")
        return edited

    return Edited(torch.from_numpy(mask).to(parameter.device), change)


def _add(
    plan: Plan,
    measures: slice,
    at: Bool[np.ndarray, "batch pos"],
    doc: Int[np.ndarray, "batch pos"],
    rows: Int[np.ndarray, "batch pos"],
    change: Float[np.ndarray, "measure batch pos"],
    clean: Float[np.ndarray, "measure batch pos"],
) -> None:
    offset = plan.offset[rows][at]
    plan.effects.add(measures, doc[at], offset, change[:, at])
    plan.cleans.add(measures, doc[at], offset, clean[:, at])


def _rows(plan: Plan, passes: Passes, wanted: list[str], conf_level: float) -> pd.DataFrame:
    """Return a plan's rows of the effects frame."""
    table = document_means(plan.effects.sums, plan.effects.counts, conf_level=conf_level)
    cleans = document_means(plan.cleans.sums, plan.cleans.counts, conf_level=conf_level)["estimate"]
    # The norms that an edit can move: those computed after its hook point.
    order = list(HOOK_POINTS)
    is_after = order.index(passes.norm_hook) > order.index(passes.hook)
    first = min(plan.layers) + (0 if is_after else 1)
    measured = [(name, -1, i) for i, name in enumerate(("loss", "kl", "top1")) if name in wanted]
    if "norms" in wanted:
        measured += [("norms", layer, 3 + layer) for layer in range(first, passes.n_layers)]
    layer = plan.layers[0] if len(plan.layers) == 1 else -1
    keys = {
        "model": passes.name,
        "hook": passes.hook,
        "layer": layer,
        "depth": (layer + 0.5) / passes.n_layers if layer >= 0 else np.nan,
        "edit": plan.edit.name,
        "dose": plan.edit.dose,
        "control": plan.control,
        "n_edited": int(sum(mask.sum() for mask in plan.masks.values())),
    }
    places = [-1, *range(plan.effects.max_offset + 1)]
    rows = [
        keys
        | {
            "measure": name,
            "norm_hook": passes.norm_hook if name == "norms" else "",
            "measured_layer": measured_layer,
            "offset": offset,
            "clean": cleans[at, offset] if name in ("loss", "norms") else np.nan,
        }
        | {column: values[at, offset] for column, values in table.items()}
        for name, measured_layer, at in measured
        for offset in places
        if table["n"][at, offset] > 0
    ]
    if not rows:
        raise InputError(
            f"{plan.edit.name} reaches nothing that is measured: no token follows an edited one, or no layer the "
            "last. Choose other positions=, layers= or measure=."
        )
    return pd.DataFrame(rows)


def _logs(
    norms: Float[np.ndarray, "layer batch pos"],
    at: Bool[np.ndarray, "batch pos"],
    rows: Int[np.ndarray, "batch pos"],
    tokens: pd.DataFrame,
    where: str,
) -> Float[np.ndarray, "layer batch pos"]:
    """Return the logarithms of norms, 0 where they are not counted."""
    with np.errstate(divide="ignore"):
        logs = np.where(at, np.log(norms), 0.0)
    _require_finite(logs, at, rows, tokens, where)
    return logs


def _require_finite(
    values: Float[np.ndarray, "measure batch pos"],
    at: Bool[np.ndarray, "batch pos"],
    rows: Int[np.ndarray, "batch pos"],
    tokens: pd.DataFrame,
    where: str,
) -> None:
    is_finite = np.isfinite(values).all(axis=0) | ~at
    _require(is_finite.ravel(), rows.ravel(), tokens, where)


def _require(
    fine: Bool[np.ndarray, " tokens"], rows: Int[np.ndarray, " tokens"], tokens: pd.DataFrame, where: str
) -> None:
    if not fine.all():
        token = tokens.iloc[int(rows[int((~fine).argmax())])]
        raise NumericalError(
            f"An effect is NaN or infinite ({where}; document {token['doc']!r}, window {token['window']}, position "
            f"{token['position']}); no number of this run can be trusted. Is the dose too large for the dtype?"
        )


def _edits(edit: Any) -> list[Edit]:
    edits = list(edit) if isinstance(edit, Sequence) else [edit]
    for one in edits:
        if not (hasattr(one, "bind") and hasattr(one, "dose")):
            raise InputError(
                f"intervene needs Scale, Rotate, Ablate or SetNorm, or a sequence of them; got {type(one).__name__}."
            )
    keys = [f"{one.name}, dose {one.dose:g}" for one in edits]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(
                f"Two edits would be told apart by nothing ({key}); give their effects two calls."
            )
    if not edits:
        raise InputError("intervene needs at least one edit; got an empty sequence.")
    return edits


def _names(values: Any, options: tuple[str, ...], *, name: str, least: int = 1) -> list[str]:
    names = [values] if isinstance(values, str) else list(values)
    for value in names:
        require_option(value, options, name=name)
    if len(names) < least or len(set(names)) < len(names):
        raise InputError(
            f"{name} must name at least {least} of {', '.join(options)}, each once; got {names}."
        )
    return names


def _layers(layers: Any, n_layers: int) -> list[int]:
    chosen_layers = list(range(n_layers)) if layers is None else list(layers)
    for layer in chosen_layers:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= int(layer) < n_layers:
            raise InputError(f"layers must be whole numbers from 0 to {n_layers - 1}; got {layer!r}.")
    if not chosen_layers or len(set(chosen_layers)) < len(chosen_layers):
        raise InputError(f"layers must name at least one layer, each once; got {chosen_layers}.")
    return [int(layer) for layer in chosen_layers]
