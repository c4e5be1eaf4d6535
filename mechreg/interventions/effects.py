"""Effects: a model run clean and edited, layer by layer and dose by dose, to one tidy frame with intervals."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool
from tqdm.auto import tqdm

from mechreg.corpus import read_corpus, tokenize
from mechreg.forward import token_windows
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans
from mechreg.interventions.edits import Edit, require_seed
from mechreg.interventions.measuring import Measuring
from mechreg.interventions.passes import Passes
from mechreg.interventions.plans import Plan, Targets, plan_of
from mechreg.interventions.positions import Positions, chosen
from mechreg.models import HOOK_POINTS, load_model
from mechreg.schema import InputError, one_or_many, require_option, require_whole_number

Measure = Literal["loss", "kl", "top1", "norms"]
Control = Literal["random_direction", "other_position", "other_layer"]

EFFECT_COLUMNS = (
    *("model", "hook", "layer", "depth", "edit", "dose", "control", "measure", "norm_hook", "measured_layer"),
    *("offset", "estimate", "std_error", "df", "conf_low", "conf_high", "clean", "n", "n_docs", "n_edited"),
)
BATCH_TOKENS = 1024


def intervene(
    model: Any,
    documents: Any,
    edit: Edit | Sequence[Edit],
    *,
    hook: str = "attn_out",
    layers: int | Sequence[int] | None = None,
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
    layers : int or sequence of int, optional
        Edited one at a time; all layers by default.
    positions : "all", "first", int, str or function
        All tokens; position 0; every k-th token (positions k, 2k, ...); a column of booleans of the token frame;
        or a function of the token frame that gives booleans: ``lambda tokens: tokens["pos"] == "NOUN"``.
    measure : one or several of "loss", "kl", "top1", "norms"
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
    require_whole_number(batch_tokens, name="batch_tokens")
    require_whole_number(max_offset, name="max_offset", least=0)
    require_conf_level(conf_level)
    if "other_layer" in checks and (together or int(model.cfg.n_layers) < 2):
        raise InputError("The control 'other_layer' needs a layer that is not edited; leave it out.")
    options = {"norms": "norms" in wanted, "logits": set(wanted) != {"norms"}}
    passes = Passes(model, hook=hook, norm_hook=norm_hook or hook, **options)
    tokens = token_frame(model, documents)
    windows = token_windows(model, tokens)
    edited = chosen(tokens, positions)
    needed = range(passes.n_layers) if "other_layer" in checks else edited_layers
    clean = CleanRun(model, tokens, hook, list(needed), int(batch_tokens), int(seed))
    groups = [tuple(edited_layers)] if together else [(layer,) for layer in edited_layers]
    bound = [(one, one.bind(clean)) for one in edits]
    targets = Targets(clean, windows, edited, passes.n_layers)
    plans = [
        plan_of(targets, group, one, done, control)
        for group in groups
        for one, done in bound
        for control in checks
    ]
    counts, touched = _edited_counts(plans, len(tokens))
    windows = [window for window in windows if touched[window.rows].any()]
    with tqdm(
        total=sum(window.length for window in windows) * (len(plans) + 1),
        unit="tok",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        found = Measuring(passes, clean, wanted, int(max_offset), bar).means(windows, plans)
    tables = [
        _rows(plan, passes, wanted, conf_level, *means, n_edited)
        for plan, means, n_edited in zip(plans, found, counts, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)[list(EFFECT_COLUMNS)]


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


def _edited_counts(plans: Sequence[Plan], n_tokens: int) -> tuple[list[int], Bool[np.ndarray, " tokens"]]:
    """Return how many vectors each plan changes, and which tokens any of them does."""
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
            f"{plan.edit.name} reaches nothing that is measured: no token follows an edited one, or no layer the "
            "last. Choose other positions=, layers= or measure=."
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
            raise InputError(
                f"Two edits would be told apart by nothing ({key}); give their effects two calls."
            )
    if not edits:
        raise InputError("intervene needs at least one edit; got an empty sequence.")
    return edits


def _names(values: Any, options: tuple[str, ...], *, name: str, least: int = 1) -> list[str]:
    names = one_or_many(values)
    for value in names:
        require_option(value, options, name=name)
    if len(names) < least or len(set(names)) < len(names):
        raise InputError(
            f"{name} must name at least {least} of {', '.join(options)}, each once; got {names}."
        )
    return names


def _layers(layers: Any, n_layers: int) -> list[int]:
    chosen_layers = list(range(n_layers)) if layers is None else one_or_many(layers)
    for layer in chosen_layers:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= int(layer) < n_layers:
            raise InputError(f"layers must be whole numbers from 0 to {n_layers - 1}; got {layer!r}.")
    if not chosen_layers or len(set(chosen_layers)) < len(chosen_layers):
        raise InputError(f"layers must name at least one layer, each once; got {chosen_layers}.")
    return [int(layer) for layer in chosen_layers]
