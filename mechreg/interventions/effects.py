"""Effects: a model run clean and edited, layer by layer and dose by dose, to one tidy frame with intervals."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from mechreg.forward import token_bar, token_windows
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans
from mechreg.interventions.measuring import ANSWERS, OF_LAYERS, Measuring
from mechreg.interventions.passes import Passes, Site
from mechreg.interventions.plans import Edit, Plan, Targets, plan_of
from mechreg.interventions.positions import Positions, chosen
from mechreg.models import HOOK_POINTS, Model, is_per_head, load_model, record_of
from mechreg.norms import known_layers, token_frame
from mechreg.outside import any_frames
from mechreg.schema import (
    InputError,
    one_or_many,
    require_names,
    require_shared,
    require_whole_number,
    require_whole_numbers,
)

Measure = Literal["loss", "kl", "top1", "norms", "difference", "target_loss", "logit_difference"]
Control = Literal["random_direction", "other_position", "other_layer", "direct"]
Answer = str | int | Sequence[str | int] | np.ndarray | Tensor | None

EFFECT_COLUMNS = (
    *("model", "hook", "layer", "head", "depth", "edit", "dose", "control", "measure", "norm_hook"),
    *("measured_layer", "offset", "estimate", "std_error", "df", "conf_low", "conf_high", "clean"),
    *("n", "n_docs", "n_edited"),
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
    heads: int | Sequence[int] | None = None,
    positions: Positions = "all",
    measures: Sequence[str] = ("loss", "kl", "top1", "norms"),
    measured_at: Positions = "all",
    target: Answer = None,
    foil: Answer = None,
    controls: Sequence[str] = (),
    together: bool = False,
    norm_hook: str | None = None,
    max_offset: int = 8,
    batch_tokens: int = BATCH_TOKENS,
    conf_level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the effects of an edit of one hook point downstream: on the next token, and on the layers that follow.

    Every batch runs clean once, then once for each layer, head, edit and control, in the same shape and order.
    The tokens counted are those that an edit can reach: at and after the first edited token of their window.

    Parameters
    ----------
    model : model, name or path
        Anything that `load_model` takes.
    documents : documents frame, list of str, path, or token frame
        What `read_corpus` takes or gives, or what `tokenize` gives, with any further columns.
    edit : Scale, Rotate, Project, Ablate, Patch, SetNorm, or a sequence of them
        Pass a sequence to compare doses.
    hook : str
        resid_pre, attn_out, resid_mid (not on a bridge), mlp_out or resid_post: where the edit is made. At z and
        result (what a head reads out before and after its output matrix) heads are edited.
    layers, heads : int or sequence of int, optional
        Edited one at a time; all by default.
    positions : "all", "first", "last", int, str or function
        All tokens; the first or last of each window; every k-th token (positions k, 2k, ...); a column of booleans of
        the token frame; or a function of it that gives booleans: ``lambda tokens: tokens["pos"] == "NOUN"``.
    measures : one or several of these names
        Of the next token: "loss", the change of its cross-entropy (nats); "kl", KL(clean || edited) (nats); "top1", the
        share of tokens whose likeliest next token is another. Of every later layer at ``norm_hook``: "norms", the
        change of the log norm; "difference", the norm of edited less clean. "target_loss": the change of the target's
        cross-entropy. "logit_difference": the change of the target's logit less the foil's.
    measured_at : as positions
        Tokens whose effects count: "last" for the answer to a prompt.
    target, foil : str, int, or a sequence, array or tensor of them
        A token, as text or as id, for all documents; or one for each document.
    controls : one or several of "random_direction", "other_position", "other_layer", "direct"
        As well as the edit itself: a change of the same size in a random direction; the same edit at as many
        other tokens of the window (never position 0); the same edit in another layer, drawn for each window; the same
        edit where attention in later layers adds what it added in the clean run (the direct effect).
    together : bool
        Edit all the layers and heads in one pass: ``layer`` and ``head`` are then -1. Norms are what a layer computed
        before its own edit.
    norm_hook : str, optional
        Where norms are measured; by default at ``hook``, and at attn_out for heads.
    max_offset : int
        Effects are also given separately for tokens 0, 1, ... max_offset after the last edited token.
    seed : int
        Of controls and `Ablate("resample")`; `Rotate` has its own.
    batch_tokens, conf_level, progress
        As for `extract_norms` and `fit_lagged`.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer (edited), head (-1 but for heads), depth, edit, dose, control ("none" for the edit itself),
        measure, norm_hook and measured_layer ("" and -1 but for measures of layers), offset (-1: all tokens reached),
        estimate, std_error, df, conf_low, conf_high, clean (the mean in the clean run: loss, log norm, norm, logit
        difference), n (tokens), n_docs, n_edited (vectors changed). An estimate is the mean over documents of their
        means, its interval t(n_docs - 1) of those; NaN with one document.

    Raises
    ------
    InputError, ModelError, NumericalError
        A wrong option, no token chosen, an edit that does not fit the documents or layers; a hook point that is missing
        or did not fire exactly once in a pass, dropout; an effect that is NaN or infinite.

    Examples
    --------
    >>> from mechreg.interventions import Patch, Scale
    >>> effects = intervene("mini-s", ["The cat sat on the mat.", "It rained."], Scale(0.0), layers=[0])
    >>> effects.query("measure == 'kl' and offset == -1")["estimate"].gt(0).tolist()
    [True]
    >>> patched = intervene("mini-s", ["The dog sat"], Patch(["The cat sat"]), hook="z", layers=0, measures="kl")
    >>> sorted(set(patched["head"]))
    [0, 1, 2, 3]
    """
    model = load_model(model)
    edits = _edits(edit)
    require_shared(conf_level=conf_level, seed=seed, batch_tokens=batch_tokens)
    wanted = require_names(measures, get_args(Measure), name="measures")
    checks = ["none", *require_names(controls, get_args(Control), name="controls", least=0)]
    require_whole_number(max_offset, name="max_offset", least=0)
    passes = _passes(model, hook, norm_hook, wanted, checks)
    sites = _sites(passes, layers, heads)
    if {"other_layer", "direct"} & {*checks} and (together or passes.n_layers < 2):
        raise InputError("'other_layer' and 'direct' need a layer that is not edited; leave them out.")
    tokens = token_frame(model, documents).reset_index(drop=True)
    windows = token_windows(model, tokens)
    edited, counted = chosen(tokens, positions), chosen(tokens, measured_at, name="measured_at")
    groups = [tuple(sites)] if together else [(site,) for site in sites]
    if "other_layer" in checks:
        every_head = dict.fromkeys(site.head for site in sites)
        sites = [Site(layer, head) for layer in range(passes.n_layers) for head in every_head]
    clean = CleanRun(model, tokens, hook, sites, int(batch_tokens), int(seed))
    answers = _answers(clean, wanted, target, foil)
    targets = Targets(clean, windows, edited, passes.n_layers)
    bound = [(one, one.bind(clean)) for one in edits]
    plans = [plan_of(targets, g, one, made, check) for g in groups for one, made in bound for check in checks]
    n_edited, touched = _edited_counts(plans, len(tokens))
    windows = [window for window in windows if touched[window.rows].any()]
    with token_bar(sum(window.length for window in windows) * (len(plans) + 1), progress) as bar:
        measuring = Measuring(passes, clean, wanted, counted, answers, int(max_offset), bar)
        means = measuring.means(windows, plans)
    plan_means = zip(plans, means, n_edited, strict=True)
    tables = [_rows(plan, measuring, conf_level, *found, n) for plan, found, n in plan_means]
    if all(table.empty for table in tables):
        raise InputError(
            f"{plans[0].edit.name} reaches nothing that is measured: no token follows an edited one, or no layer "
            "follows the last. Choose other positions=, layers=, measured_at= or measures=."
        )
    return pd.concat(tables, ignore_index=True)[list(EFFECT_COLUMNS)]


def _passes(model: Model, hook: str, norm_hook: str | None, wanted: list[str], checks: list[str]) -> Passes:
    return Passes(
        model,
        hook=hook,
        norm_hook=norm_hook or ("attn_out" if hook in ("z", "result") else hook),
        norms=bool({*wanted} & {*OF_LAYERS}),
        logits=bool({*wanted} - {*OF_LAYERS}),
        distances="difference" in wanted,
        direct="direct" in checks,
    )


def _sites(passes: Passes, layers: Any, heads: Any) -> list[Site]:
    """Return the layers that are edited, or their heads."""
    chosen_layers = known_layers(passes.model, layers)
    if not is_per_head(passes.hook):
        if heads is not None:
            raise InputError(f"heads= needs hook='z' or hook='result'; the hook is {passes.hook!r}.")
        return [Site(layer) for layer in chosen_layers]
    n_heads = int(passes.model.cfg.n_heads)
    chosen_heads = require_whole_numbers(
        range(n_heads) if heads is None else heads, name="heads", most=n_heads - 1
    )
    return [Site(layer, head) for layer in chosen_layers for head in chosen_heads]


def _answers(clean: CleanRun, wanted: list[str], target: Any, foil: Any) -> Int[np.ndarray, "doc 2"]:
    """Return the ids of the target and the foil of every document; zeros where none is needed."""
    ids = np.zeros((int(clean.docs.max()) + 1, 2), np.int64)
    for i, (name, value) in enumerate({"target": target, "foil": foil}.items()):
        needing = [measure for measure in wanted if measure in ANSWERS[i:]]
        if needing and value is None:
            raise InputError(f"The measure {needing[0]!r} needs {name}=, a token as text or as id.")
        if value is not None:
            several = one_or_many(value)
            if len(several) not in (1, len(ids)):
                raise InputError(
                    f"{name}= must be one token, or one for each of {len(ids)} documents; got {len(several)}."
                )
            ids[:, i] = [token_id(clean.model, one, name=name) for one in several]
    return ids


def token_id(model: Model, token: Any, *, name: str) -> int:
    """Return the id of a token that is given as text or as id."""
    token = token.tolist() if hasattr(token, "tolist") else token  # of an array or a tensor
    token = token[0] if isinstance(token, list) and len(token) == 1 else token
    if not isinstance(token, str):
        require_whole_number(
            token, name=f"{name}, a token as text or as id,", most=int(model.cfg.d_vocab) - 1, least=0
        )
        return int(token)
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(
            f"{name}= must be one token; {token!r} is {len(ids)} tokens of {record_of(model).name}: "
            f"{[model.tokenizer.decode([piece]) for piece in ids]}. A word within a text mostly begins with its space."
        )
    return int(ids[0])


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
    measuring: Measuring,
    conf_level: float,
    effects: DocumentMeans,
    cleans: DocumentMeans,
    n_edited: int,
) -> pd.DataFrame:
    """Return a plan's rows of the effects frame; none where it reaches nothing that is measured."""
    passes, table = measuring.passes, effects.table(conf_level=conf_level)
    # What an edit can move of a layer: what is computed after its hook point.
    order = list(HOOK_POINTS)
    is_after = order.index(passes.norm_hook) > order.index(passes.hook)
    first = min(site.layer for site in plan.sites) + (0 if is_after else 1)
    site = plan.sites[0] if len(plan.sites) == 1 else Site(-1)
    names, measured = (np.array(values) for values in zip(*measuring.slots, strict=True))
    shown = (table["n"] > 0) & ((measured < 0) | (measured >= first))[:, None]
    slot, offset = np.nonzero(shown)
    offset = np.where(offset == shown.shape[1] - 1, -1, offset)
    slot, offset = (values[np.lexsort((offset, slot))] for values in (slot, offset))
    has_clean = ~np.isin(names, ("kl", "top1"))
    clean = np.where(has_clean[:, None], cleans.table(conf_level=conf_level)["estimate"], np.nan)
    columns = {
        "model": passes.name,
        "hook": passes.hook,
        **site._asdict(),
        "depth": (site.layer + 0.5) / passes.n_layers if site.layer >= 0 else np.nan,
        "edit": plan.edit.name,
        "dose": plan.edit.dose,
        "control": plan.control,
        "measure": names[slot],
        "norm_hook": np.where(measured[slot] >= 0, passes.norm_hook, ""),
        "measured_layer": measured[slot],
        "offset": offset,
        "clean": clean[slot, offset],
        "n_edited": n_edited,
    }
    return pd.DataFrame(columns | {column: values[slot, offset] for column, values in table.items()})


def _edits(edit: Any) -> list[Edit]:
    edits = one_or_many(edit)
    for one in edits:
        if not (hasattr(one, "bind") and hasattr(one, "dose")):
            raise InputError(
                "intervene needs Scale, Rotate, Project, Ablate, Patch or SetNorm, or a sequence of them; got "
                f"{type(one).__name__}."
            )
    keys = [f"{one.name}, dose {one.dose:g}" for one in edits]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"Two edits have the same name and dose ({key}); use separate calls.")
    if not edits:
        raise InputError("intervene needs at least one edit; got an empty sequence.")
    return edits
