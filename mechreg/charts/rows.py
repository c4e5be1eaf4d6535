"""Which rows of a frame a chart shows: one hook point, a few models."""

import pandas as pd

from mechreg.schema import InputError, did_you_mean

MAX_MODELS = 6


def one_hook(frame: pd.DataFrame, hook: str | None, *, who: str) -> tuple[pd.DataFrame, str]:
    """Return the rows of one hook point and its name: the one asked for, else the only one.

    Raises
    ------
    InputError
        The frame is empty or lacks a model, hook, layer or depth in some row; it has several hooks and none was
        asked for, or not the one that was.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": ["z", "attn_out"], "layer": 0, "depth": 0.5})
    >>> one_hook(frame, "z", who="plot_norms")[1]
    'z'
    """
    if not len(frame):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    for key in ("model", "hook", "layer", "depth"):
        if frame[key].isna().any():  # such rows would vanish from the figure without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
    have = distinct(frame["hook"])
    listed = ", ".join(repr(name) for name in have)
    if hook is None and len(have) > 1:
        raise InputError(f"{who} shows one hook at a time; the frame has {listed}. Choose with hook=.")
    if hook is not None and hook not in have:
        raise InputError(
            f"{who} has no rows of the hook {hook!r}; the frame has {listed}.{did_you_mean(hook, have)}"
        )
    chosen = have[0] if hook is None else hook
    return frame[frame["hook"] == chosen], chosen


def few_models(frame: pd.DataFrame, *, who: str) -> list[str]:
    """Return the models of a frame in its order, at most as many as one figure can show.

    Raises
    ------
    InputError
        There are more.

    Examples
    --------
    >>> few_models(pd.DataFrame({"model": ["gpt2-xl", "gpt2", "gpt2"]}), who="plot_betas")
    ['gpt2-xl', 'gpt2']
    """
    models = distinct(frame["model"])
    if len(models) > MAX_MODELS:
        raise InputError(
            f"{who} shows at most {MAX_MODELS} models in one figure; the frame has {len(models)} "
            f"({', '.join(models[:3])}, ...). Choose some: frame[frame['model'].isin([...])]."
        )
    return models


def distinct(values: pd.Series) -> list[str]:
    """Return the values of a column, in the order of their first row."""
    return list(values.unique())


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1.

    Examples
    --------
    >>> count(1, "document"), count(12000, "token")
    ('1 document', '12,000 tokens')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
