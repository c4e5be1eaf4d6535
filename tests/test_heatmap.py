"""The heat map of layers by tokens: its cells are the frame's numbers, its rows the text, two prompts a difference."""

import numpy as np
import pandas as pd
import pytest

from mechreg import plot_heatmap
from mechreg.schema import InputError, NumericalError


def frame(words, *, layers=2, seed=0, **columns):
    """Return norms of one text, a row a layer and token."""
    rng = np.random.default_rng(seed)
    keys = {"model": "m", "hook": "attn_out", "doc": "d", "window": 0}
    rows = [
        keys | {"layer": layer, "position": at, "token": word, "norm": rng.lognormal()} | columns
        for layer in range(layers)
        for at, word in enumerate(words)
    ]
    return pd.DataFrame(rows)


def lines(chart):
    """Return the cells of every row of tokens, and the labels under it."""
    spec = chart.to_dict()
    of = spec["datasets"]
    return [tuple(pd.DataFrame(of[part["data"]["name"]]) for part in row["layer"]) for row in spec["vconcat"]]


def test_a_long_text_is_broken_into_rows_and_every_cell_is_a_log_norm():
    words = [f" w{at}" for at in range(102)]
    norms = frame(words, layers=3)
    rows = lines(plot_heatmap(norms.sample(frac=1, random_state=0)))
    assert [len(labels) for _, labels in rows] == [34, 34, 34]
    assert [label for _, labels in rows for label in labels.sort_values("at")["label"]] == [
        word.strip() for word in words
    ]
    cells = pd.concat([cells for cells, _ in rows]).sort_values(["layer", "at"])
    np.testing.assert_allclose(cells["value"], np.log(norms["norm"]), atol=5.1e-5)


def test_two_prompts_are_the_first_less_the_second_and_show_both_tokens():
    first, second = frame(["A", " cat", " sat"]), frame(["A", " dog", " sat"], seed=1)
    chart = plot_heatmap(first, second.sample(frac=1, random_state=1))
    ((cells, labels),) = lines(chart)
    expected = np.log(first["norm"]) - np.log(second["norm"])
    np.testing.assert_allclose(cells.sort_values(["layer", "at"])["value"], expected, atol=1.1e-4)
    assert labels.sort_values("at")["label"].tolist() == ["A", "cat / dog", "sat"]
    with pytest.raises(InputError, match="have 3 tokens in 2 layers and 2 tokens in 2 layers"):
        plot_heatmap(first, frame(["A", " cat"]))


def test_a_column_of_any_name_is_shown_as_it_is_and_without_tokens_positions_label_it():
    norms = frame(["A", " b"], cos=0.5).drop(columns="token")
    ((cells, labels),) = lines(plot_heatmap(norms, value="cos"))
    assert cells["value"].tolist() == [0.5] * 4
    assert labels["label"].tolist() == ["0", "1"]


@pytest.mark.parametrize(
    ("spoil", "options", "error", "said"),
    [
        (lambda f: pd.concat([f, f.assign(doc="e")]), {}, InputError, "takes one doc at a time"),
        (lambda f: pd.concat([f, f]), {}, InputError, "one row for each layer and token"),
        (lambda f: f.assign(norm=0.0), {}, NumericalError, "the logarithm of every norm"),
        (lambda f: f.assign(x=np.nan), {"value": "x"}, NumericalError, "a finite 'x' at some token"),
        (lambda _: frame(["a"] * 1_001, layers=18), {}, InputError, "at most 18,000 cells"),
    ],
)
def test_what_cannot_be_shown_is_refused(spoil, options, error, said):
    with pytest.raises(error, match=said):
        plot_heatmap(spoil(frame(["A", " b"])), **options)
