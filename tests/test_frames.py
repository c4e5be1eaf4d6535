"""One tidy frame, whether it comes from a model or from the disk."""

import numpy as np
import pandas as pd

from mechreg import store
from mechreg.frames import norm_frame, stacked
from mechreg.norms import extract_norms

TOKENS = pd.DataFrame({"doc": ["b", "b", "a"], "window": 0, "position": [0, 1, 0], "token_id": [7, 8, 9]})


def frame(hook: str, *, heads: int | None = None) -> pd.DataFrame:
    values = np.arange(1.0, 1 + 2 * (heads or 1) * 3)
    shape = (2, 3) if heads is None else (2, heads, 3)
    return norm_frame(TOKENS, {"norm": values.reshape(shape)}, model="m", hook=hook)


def test_layers_come_first_then_heads_then_tokens():
    found = frame("z", heads=2)
    assert found["layer"].tolist() == [0] * 6 + [1] * 6
    assert found["head"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert found["depth"].tolist() == [0.25] * 6 + [0.75] * 6
    assert found["norm"].tolist() == list(range(1, 13))
    assert found["token_id"].tolist() == [7, 8, 9] * 4


def test_hooks_without_heads_have_head_minus_one_in_the_same_column():
    one, other = (stacked([frame(a, heads=h), frame(b, heads=k)]) for a, h, b, k in [
        ("attn_out", None, "z", 2), ("z", 2, "attn_out", None),
    ])  # fmt: skip
    assert one.columns.tolist() == other.columns.tolist()
    assert one.columns[2:5].tolist() == ["layer", "head", "depth"]
    assert one.loc[one["hook"] == "attn_out", "head"].eq(-1).all()
    assert one["head"].dtype == "int16"


def test_categories_stay_as_they_come_or_are_sorted():
    parts = [frame("mlp_out").assign(model=pd.Categorical(["n"] * 6)), frame("attn_out")]
    came, ordered = stacked(parts), stacked(parts, sort=True)
    assert came["model"].cat.categories.tolist() == ["n", "m"]
    assert came["hook"].cat.categories.tolist() == ["mlp_out", "attn_out"]
    assert ordered["model"].cat.categories.tolist() == ["m", "n"]
    assert ordered["doc"].cat.categories.tolist() == ["a", "b"]
    assert came["model"].tolist() == ordered["model"].tolist() == ["n"] * 6 + ["m"] * 6


def test_a_shard_of_each_hook_reads_back_as_the_frame_of_the_model(tmp_path):
    norms = extract_norms("mini-s", ["The cat sat on the mat."], hooks=("attn_out", "z"), progress=False)
    tokens = norms.drop_duplicates(["doc", "window", "position"])
    parts = []
    for hook in ("attn_out", "z"):
        own = norms.loc[norms["hook"] == hook, "norm"].to_numpy()
        values = own.reshape((4, len(tokens)) if hook == "attn_out" else (4, -1, len(tokens)))
        path = tmp_path / f"{hook}.parquet"
        store.write_norm_shard({"norm": values}, tokens, path, model="mini-s", hook=hook)
        parts.append(store.read_norm_shard(path))
    pd.testing.assert_frame_equal(stacked(parts), norms)
