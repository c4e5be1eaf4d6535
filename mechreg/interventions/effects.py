"""Effects: a model run clean and edited, layer by layer and dose by dose, to one tidy frame with intervals."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mechreg.forward import token_bar, token_windows
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans
from mechreg.interventions.edits import Edit
from mechreg.interventions.measuring import NEXT_TOKEN, Measuring
from mechreg.interventions.passes import Passes
from mechreg.interventions.plans import Plan, Targets, plan_of
from mechreg.interventions.positions import Positions, chosen
from mechreg.models import HOOK_POINTS, load_model
from mechreg.norms import token_frame
from mechreg.outside import any_frames
from mechreg.schema import (
    InputError,
    one_or_many,
    require_conf_level,
    require_names,
    require_whole_number,
    require_whole_numbers,
)

Measure = Literal["loss", "kl", "top1", "norms"]
Control = Literal["random_direction", "other_position", "other_layer"]

EFFECT_COLUMNS = (
    *("model", "hook", "layer", "depth", "edit", "dose", "control", "measure", "norm_hook", "measured_layer"),
    *("offset", "estimate", "std_error", "df", "conf_low", "conf_high", "clean", "n", "n_docs", "n_edited"),
)
BATCH_TOKENS = 1024


@any_frames
def intervene(
    model: Any,
    documents: Any,
    edit: Edit | Sequence[Edit],
    *,
    hook: str = "attn_out",
    layers: int | Sequence[int] | None = None,
    positions: Positions = "all",
    measures: Sequence[str] = ("loss", "kl", "top1", "norms"),
    controls: Sequence[str] = (),
    together: bool = False,
    norm_hook: str | None = None,
    max_offset: int = 8,
    batch_tokens: int = BATCH_TOKENS,
    conf_level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the effects of an edit of one hook point downstream: on the next token, and on the norms that follow.

    Every batch runs clean once, then once for each layer, edit and control, in the same shape and order.
    The tokens counted are those that an edit can reach: at and after the first edited token of their window.

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
    layers : int or sequence of int, optional
        Edited one at a time; all layers by default.
    positions : "all", "first", int, str or function
        All tokens; position 0; every k-th token (positions k, 2k, ...); a column of booleans of the token frame;
        or a function of the token frame that gives booleans: ``lambda tokens: tokens["pos"] == "NOUN"``.
    measures : one or several of "loss", "kl", "top1", "norms"
        Change of the next token's cross-entropy (nats); KL(clean || edited) (nats); share of tokens whose
        likeliest next token is another; change of the log norm at ``norm_hook`` in every later layer.
    controls : one or several of "random_direction", "other_position", "other_layer"
        As well as the edit itself: a change of the same size in a random direction; the same edit at as many
        other tokens of the window (never position 0); the same edit in another layer, drawn for each window.
    together : bool
        Edit all the layers in one pass: ``layer`` is then -1. Norms are what a layer computed before its own edit.
    norm_hook : str, optional
        Where norms are measured; by default at ``hook``.
    max_offset : int
        Effects are also given separately for tokens 0, 1, ... max_offset after the last edited token.
    batch_tokens : int
        Tokens in a batch, right padding included.
    conf_level : float
    seed : int
        Of controls and `Ablate("resample")`; `Rotate` has its own.
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
        A wrong option, no token chosen, or an edit that does not fit the documents or layers.
    ModelError
        A hook point is missing, an edit did not fire exactly once in a pass, or dropout is on.
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
    n_layers = int(model.cfg.n_layers)
    edits = _edits(edit)
    wanted = require_names(measures, get_args(Measure), name="measures")
    checks = ["none", *require_names(controls, get_args(Control), name="controls", least=0)]
    layers = require_whole_numbers(
        range(n_layers) if layers is None else layers, name="layers", most=n_layers - 1
    )
    for name, number, least in (
        ("seed", seed, 0),
        ("batch_tokens", batch_tokens, 1),
        ("max_offset", max_offset, 0),
    ):
        require_whole_number(number, name=name, least=least)
    require_conf_level(conf_level)
    if "other_layer" in checks and (together or n_layers < 2):
        raise InputError("The control 'other_layer' needs a layer that is not edited; leave it out.")
    options = {"norms": "norms" in wanted, "logits": wanted != ["norms"]}
    passes = Passes(model, hook=hook, norm_hook=norm_hook or hook, **options)
    tokens = token_frame(model, documents).reset_index(drop=True)
    windows = token_windows(model, tokens)
    edited = chosen(tokens, positions)
    needed = list(range(n_layers)) if "other_layer" in checks else layers
    clean = CleanRun(model, tokens, hook, needed, int(batch_tokens), int(seed))
    bound = [(one, one.bind(clean)) for one in edits]
    targets = Targets(clean, windows, edited, n_layers)
    plans = [
        plan_of(targets, group, one, functions, control)
        for group in ([tuple(layers)] if together else [(layer,) for layer in layers])
        for one, functions in bound
        for control in checks
    ]
    counts, touched = _edited_counts(plans, len(tokens))
    windows = [window for window in windows if touched[window.rows].any()]
    total = sum(window.length for window in windows) * (len(plans) + 1)
    with token_bar(total, progress) as bar:
        means = Measuring(passes, clean, wanted, int(max_offset), bar).means(windows, plans)
    tables = [
        _rows(plan, passes, wanted, conf_level, *effects_and_cleans, n_edited)
        for plan, effects_and_cleans, n_edited in zip(plans, means, counts, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)[list(EFFECT_COLUMNS)]


def _edited_counts(plans: Sequence[Plan], n_tokens: int) -> tuple[list[int], Bool[np.ndarray, " tokens"]]:
    """Return how many vectors each plan changes, and which tokens any plan does."""
    counts, touched = [], np.zeros(n_tokens, bool)
    for plan in plans:
        masks = list(plan.masks().values())
        counts.append(int(sum(mask.sum() for mask in masks)))
        touched = np.logical_or.reduce([touched, *masks])
    return counts, touched


def _rows(
    plan: Plan,
    passes: Passes,
    wanted: list[str],
    conf_level: float,
    effects: DocumentMeans,
    cleans: DocumentMeans,
    n_edited: int,
) -> pd.DataFrame:
    """Return a plan's rows of the effects frame."""
    table = effects.table(conf_level=conf_level)
    clean = cleans.table(conf_level=conf_level)["estimate"]
    # The norms that an edit can move: those computed after its hook point.
    order = list(HOOK_POINTS)
    is_after = order.index(passes.norm_hook) > order.index(passes.hook)
    first = min(plan.layers) + (0 if is_after else 1)
    measured = [(name, -1, i) for i, name in enumerate(NEXT_TOKEN) if name in wanted]
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
        "n_edited": n_edited,
    }
    places = [-1, *range(table["n"].shape[-1] - 1)]
    rows = [
        keys
        | {
            "measure": name,
            "norm_hook": passes.norm_hook if name == "norms" else "",
            "measured_layer": measured_layer,
            "offset": offset,
            "clean": clean[at, offset] if name in ("loss", "norms") else np.nan,
        }
        | {column: values[at, offset] for column, values in table.items()}
        for name, measured_layer, at in measured
        for offset in places
        if table["n"][at, offset] > 0
    ]
    if not rows:
        raise InputError(
            f"{plan.edit.name} reaches nothing that is measured: no token follows an edited one, or no layer follows "
            "the last. Choose other positions=, layers= or measures=."
        )
    return pd.DataFrame(rows)


def _edits(edit: Any) -> list[Edit]:
    edits = one_or_many(edit)
    for one in edits:
        if not (hasattr(one, "bind") and hasattr(one, "dose")):
            raise InputError(
                f"intervene needs Scale, Rotate, Ablate or SetNorm, or a sequence of them; got {type(one).__name__}."
            )
    keys = [f"{one.name}, dose {one.dose:g}" for one in edits]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"Two edits have the same name and dose ({key}); use separate calls.")
    if not edits:
        raise InputError("intervene needs at least one edit; got an empty sequence.")
    return edits
