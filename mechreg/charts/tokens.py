"""A document as text, every token shaded by a number."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import Tooltip, tooltips
from mechreg.charts.layout import Sheet, Width, sheet
from mechreg.charts.rows import chosen_group, frame_of, one_name, one_value
from mechreg.charts.scales import colour_ends
from mechreg.charts.theme import INK, OKABE_ITO
from mechreg.schema import TOKEN_KEYS, InputError, NumericalError, log_norms
from mechreg.words import count

MAX_TOKENS = 2_000
# All of them have characters 0.6 of the size wide, so that a token's place can be computed without drawing it.
MONOSPACE = "Liberation Mono, Courier New, monospace"
FONT_SIZE, LINE_HEIGHT = 12, 20
CELL = 0.6 * FONT_SIZE
# Pale enough at both ends for dark text: a token must be read whatever its shade.
BELOW, NEUTRAL, ABOVE = OKABE_ITO[5], "#f7f7f7", OKABE_ITO[4]
NOTHING = "#e6e6e6"
_TITLES = {
    "norm": "log norm",
    "log_norm": "log norm",
    "residual": "residual (log norm)",
    "loss_change": "change in loss (nats)",
}
_SYMBOLS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
_UNSEEN = {"Cf", "Cs", "Zl", "Zp"}


def plot_tokens(
    norms: Any,
    *,
    doc: str,
    value: str = "norm",
    layer: int | None = None,
    model: str | None = None,
    hook: str | None = None,
    head: int | None = None,
    window: int | None = None,
    coefficients: Any = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return one document as text, each token shaded by its norm, residual, lag contribution or loss change.

    The shade is full at the 1% and 99% quantiles, so that a sink does not wash out the rest. Line breaks, control
    characters and marks that would turn the direction of the text are shown as symbols.

    Parameters
    ----------
    norms : pandas.DataFrame
        doc, window, position, token, and the value's column: a norm frame joined with its token frame, the same
        with lags or residuals (``fits.augment``), or any frame with a number a token.
    doc : str
    value : str
        A column. "norm" is shown as its logarithm; "residual" and "loss_change" are in their own units; a lag
        ("lag1"), with ``coefficients``, is shown as its contribution to the prediction.
    layer, model, hook, head, window
        Which, where the frame has several; without ``window`` all windows of the document stand below each other.
    coefficients : pandas.DataFrame or fits, optional
        What `fit_lagged` gives: ``value`` then is one of its terms, and the shade is beta times the column's deviation
        from its mean over all rows of that layer.
    width, height, title
        As in every chart: see `mechreg.charts`. The height is that of a line.

    Examples
    --------
    >>> frame = pd.DataFrame({"doc": "d", "window": 0, "position": [0, 1, 2], "token": ["The", " cat", " sat"],
    ...                       "layer": 0, "norm": [30.0, 2.0, 3.0]})
    >>> plot_tokens(frame, doc="d").to_dict()["title"]["text"]
    'Tokens of d by log norm'
    """
    page = sheet(width, height, title)
    doc, value = one_name(doc, name="doc"), one_name(value, name="value")
    norms = frame_of(norms, "norms", (*TOKEN_KEYS, "token", value), who="plot_tokens")
    if coefficients is not None:
        coefficients = frame_of(coefficients, "coefficients", ("term", "estimate"), who="plot_tokens")
    wanted = {"model": model, "hook": hook, "layer": layer, "head": head}
    group, place = chosen_group(norms, wanted, who="plot_tokens")
    heading, numbers = _values(group, value, coefficients, place)
    shown = _one_document(group.assign(shade=numbers), doc, window)
    finite = shown["shade"][np.isfinite(shown["shade"])]
    if finite.empty:
        raise NumericalError(f"plot_tokens needs a finite {value!r} at some token of {doc!r}; there is none.")
    columns = int(page.width / CELL)
    cells = token_cells(shown["token"].tolist(), starts=shown["position"].eq(0).tolist(), columns=columns)
    shades = shown["shade"].where(np.isfinite(shown["shade"])).round(5)
    cells[["position", "window"]] = shown[["position", "window"]].to_numpy()
    cells["value"] = shades.to_numpy()
    windows: list[Tooltip] = ["window:Q"] if shown["window"].nunique() > 1 else []
    tooltip = tooltips(("shown:N", "token", ""), "position:Q", *windows, ("value:Q", heading, ".4f"))
    caption = _caption(shown, place, len(shown) - len(finite))
    largest = shown.loc[finite.abs().idxmax()]
    chart = token_layer(
        alt.Chart(cells),
        page,
        field="value",
        ends=colour_ends(finite, 0.01),
        heading=heading,
        tooltip=tooltip,
    )
    words = (
        f"The text of {doc}, every token shaded by {heading}, from {finite.min():.3f} to {finite.max():.3f}; "
        f"the largest in size is {largest['shade']:.3f} at position {largest['position']}, token "
        f"{shown_token(largest['token'])!r}."
    )
    chart.width, chart.height = page.width, (page.height or LINE_HEIGHT) * (int(cells["line"].max()) + 1)
    return page.finished(chart, f"Tokens of {doc} by {heading}", [caption], [words])


def _caption(shown: pd.DataFrame, place: dict[str, Any], missing: int) -> str:
    named = [f"{key} {which}" if key in ("layer", "head") else str(which) for key, which in place.items()]
    caption = f"{count(len(shown), 'token')}{'; ' if named else ''}{', '.join(named)}. "
    caption += "Full shade at the 1% and 99% quantiles."
    return caption + (f" Grey: {count(missing, 'token')} without a value." if missing else "")


def shown_token(token: str) -> str:
    r"""Return a token as it can be shown: invisible, direction-changing and line-breaking characters become symbols."""
    return "".join(_shown_character(character) for character in token)


def _shown_character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    kind = unicodedata.category(character)
    if kind == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"⟨{ord(character):04X}⟩"
    return f"⟨{ord(character):04X}⟩" if kind in _UNSEEN else character


def token_cells(tokens: Sequence[str], *, starts: Sequence[bool], columns: int) -> pd.DataFrame:
    r"""Return where each token stands, in lines of so many characters: line, x and x2; its text and where that begins.

    A line ends after a token with a line break in it, before a window's start, and where the tokens of the next word do
    not fit. ``shown`` has its spaces as symbols, for tooltips; ``text`` begins after them at ``text_x``, since Vega
    trims.
    """
    texts = [shown_token(token) for token in tokens]
    texts = [
        text if sum(map(_cells_of, text)) <= columns else text[: columns // 2 - 1] + "…" for text in texts
    ]
    widths = [max(1, sum(map(_cells_of, text))) for text in texts]
    # What is left of a word at each of its tokens, from the last one back.
    rests, rest = [0] * len(texts), 0
    for at in reversed(range(len(texts))):
        is_last = (
            at + 1 == len(texts) or starts[at + 1] or texts[at + 1].startswith(" ") or "\n" in tokens[at]
        )
        rests[at] = rest = widths[at] + (0 if is_last else rest)
    rows: list[dict[str, Any]] = []
    line, x, in_word = 0, 0, False
    for token, text, width, rest, begins in zip(tokens, texts, widths, rests, starts, strict=True):
        wanted = width if in_word or rest > columns else rest
        if x and (begins or x + wanted > columns):
            line, x = line + 1, 0
        bare = text.lstrip(" ")
        place = {"line": line, "x": x, "x2": x + width, "text_x": x + len(text) - len(bare)}
        rows.append({"shown": text.replace(" ", "␣"), "text": bare, **place})
        x, in_word = x + width, rest > width
        if "\n" in token:
            line, x = line + 1, 0
    return pd.DataFrame(rows)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def token_layer(
    base: alt.Chart, page: Sheet, *, field: str, ends: list[Any], heading: str, tooltip: list[alt.Tooltip]
) -> ChartType:
    """Return the marks of a document: a shaded cell and its text for every row of `token_cells`."""
    places = alt.Scale(domain=[0, int(page.width / CELL)], nice=False)
    x, text_x = (alt.X(f"{name}:Q", scale=places, axis=None) for name in ("x", "text_x"))
    y = alt.Y("line:O", axis=None, scale=alt.Scale(paddingInner=0.1, paddingOuter=0))
    scale = alt.Scale(domain=ends, range=[BELOW, NEUTRAL, ABOVE][-len(ends) :], clamp=True, interpolate="lab")
    legend = page.gradient(heading, titleLimit=140)
    shade = alt.Color(f"{field}:Q", scale=scale, legend=legend)
    color = alt.condition(f"isValid(datum[{field!r}])", shade, alt.value(NOTHING))
    cells = base.mark_rect(stroke="white", strokeWidth=1, aria=False)
    look: Any = {
        "align": "left",
        "baseline": "middle",
        "font": MONOSPACE,
        "fontSize": FONT_SIZE,
        "color": INK,
    }
    return alt.layer(
        cells.encode(x=x, x2="x2:Q", y=y, tooltip=tooltip, color=color),
        base.mark_text(aria=False, **look).encode(x=text_x, y=y, text="text:N", tooltip=tooltip),
    )


def measured(group: pd.DataFrame, value: str, *, who: str) -> tuple[str, np.ndarray]:
    """Return a column's title and its numbers; norms as logarithms."""
    try:
        numbers = group[value].to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"{who} shades by numbers; the column {value!r} has others.") from error
    numbers = log_norms(group, who=who) if value == "norm" else numbers
    return _TITLES.get(value, value.replace("_", " ")), numbers


def _values(
    group: pd.DataFrame, value: str, coefficients: pd.DataFrame | None, place: dict[str, Any]
) -> tuple[str, np.ndarray]:
    """Return the title and the numbers of a column, or of what a term contributes to the prediction."""
    if coefficients is None:
        return measured(group, value, who="plot_tokens")
    rows = coefficients[coefficients["term"] == value]
    for key, which in place.items():
        rows = rows[rows[key] == which] if key in rows else rows
    if len(rows) != 1:
        raise InputError(
            f"plot_tokens needs one coefficient of {value!r} for "
            f"{', '.join(f'{key} {which}' for key, which in place.items()) or 'the frame'}; "
            f"there are {len(rows)}. The terms are {list(coefficients['term'].unique())}."
        )
    column = group.rename(columns={value: "lagged"})  # a term, whose norms are logarithms already
    _, numbers = measured(column, "lagged", who="plot_tokens")
    return f"contribution of {value}", float(rows["estimate"].iloc[0]) * (numbers - np.nanmean(numbers))


def _one_document(group: pd.DataFrame, doc: str, window: int | None) -> pd.DataFrame:
    """Return the tokens of one document in their order."""
    rows, _ = one_value(group.assign(doc=group["doc"].astype(str)), "doc", doc, who="plot_tokens")
    if window is not None:
        rows, _ = one_value(rows, "window", window, who="plot_tokens")
    if rows.duplicated(list(TOKEN_KEYS)).any():
        raise InputError("plot_tokens needs one row for each token; the frame has several.")
    if rows["token"].isna().any():
        raise InputError("plot_tokens needs the string of every token; some are missing.")
    if len(rows) > MAX_TOKENS:
        raise InputError(
            f"plot_tokens shows at most {MAX_TOKENS:,} tokens; {doc!r} has {len(rows):,}. Choose with window=, "
            "or give fewer rows."
        )
    return rows.sort_values(["window", "position"], ignore_index=True)
