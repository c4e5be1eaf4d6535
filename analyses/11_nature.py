# %% [markdown]
# Question: how large is an update beside the stream that it is added to, does it point with the stream or against it,
# and does its direction persist from token to token where its size does?
#
# Runs on three miniatures; `python analyses/11_nature.py FOLDER` on any other model, whose figures then have its name.
# Tokens at position 0 and sinks by size are left out, as outcome and as the token before. Means are over tokens, with
# intervals over documents; relative sizes are averaged as logarithms.

# %%
import sys
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

import mechreg as mr

NAMES = sys.argv[1:] or ["mini-s", "mini-m", "mini-l"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"
EFFECTS = ("doc", "position")
MEASURES = ("relative", "cos_resid", "cos_previous")
PARTS = {"attn_out": "attention", "mlp_out": "MLP"}
columns = ["model", "hook", "layer", "depth", "estimate", "conf_low", "conf_high"]


def of_term(rows: pd.DataFrame, formula: str, term: str = "Intercept", **options) -> pd.DataFrame:
    """Return one coefficient of every layer, with its interval; of `x ~ 1` it is the mean of x."""
    table = mr.fit_lagged(rows, formula, **options).coefficients
    return table.loc[table["term"] == term, columns].assign(measure=formula.split(" ~ ")[0])


def strangers(model: object, documents: pd.DataFrame, hook: str) -> np.ndarray:
    """Return by layer the mean cosine of the updates of two tokens of different documents, position 0 left out."""
    vectors = mr.extract_vectors(model, documents, hook=hook)
    there = vectors.tokens["position"].to_numpy() > 0
    doc = vectors.tokens["doc"].to_numpy()[there]
    unit = vectors.values[:, there] / np.linalg.norm(vectors.values[:, there], axis=-1, keepdims=True)
    means = np.stack([unit[:, doc == name].mean(axis=1) for name in pd.unique(doc)])  # document layer d_model
    total, own = means.sum(axis=0), (means**2).sum(axis=(0, 2))
    return ((total**2).sum(axis=-1) - own) / (len(means) * (len(means) - 1))


# %% One pass of each model gives all measures; a few documents' vectors give the cosine of tokens that are strangers.
documents = mr.read_corpus("demo")
few = documents.iloc[:: max(1, len(documents) // 12)]
tables = []
for name in NAMES:
    model = mr.load_model(name)
    norms = mr.extract_norms(model, documents, hooks=tuple(PARTS), measures=MEASURES, progress=False)
    lagged = mr.add_lags(norms, lags=1, drop_sinks="size")
    rows = lagged[lagged[["log_norm", "lag1"]].notna().all(axis=1)]
    tables += [
        of_term(rows, f"{measure} ~ 1") for measure in ("np.log(relative)", "cos_resid", "cos_previous")
    ]
    tables.append(of_term(rows, "log_norm ~ lag1", "lag1", effects=EFFECTS))
    both = of_term(rows, "log_norm ~ lag1 * cos_previous", "lag1:cos_previous", effects=EFFECTS)
    tables.append(both.assign(measure="interaction"))
    for hook in PARTS:
        places = both[both["hook"] == hook].assign(measure="strangers", conf_low=np.nan, conf_high=np.nan)
        tables.append(places.assign(estimate=strangers(model, few, hook)))
means = pd.concat(tables, ignore_index=True).astype({"hook": "str", "model": "str"})
logs = means["measure"] == "np.log(relative)"
numbers = ["estimate", "conf_low", "conf_high"]
means.loc[logs, numbers] = np.exp(means.loc[logs, numbers])
means["part"] = means["hook"].map(PARTS)


# %%
def save(
    stem: str, rows: pd.DataFrame, *, color: str, y: str, title: str, caption: str, scale: str = "linear"
) -> None:
    """Save a figure of lines over layers, a panel a model."""
    height = alt.Scale(type=scale)
    ticks = alt.Axis(values=[0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]) if scale == "log" else alt.Axis()
    x = alt.X("layer:Q", axis=alt.Axis(tickMinStep=1, grid=False), scale=alt.Scale(padding=8, nice=False))
    base = alt.Chart(rows).encode(x=x, color=alt.Color(f"{color}:N", title=None, sort=None))
    bars = base.mark_rule().encode(
        alt.Y("conf_low:Q", title=y, scale=height, axis=ticks), alt.Y2("conf_high:Q")
    )
    lines = base.mark_line(point=True).encode(alt.Y("estimate:Q", title=y, scale=height, axis=ticks))
    panel = alt.layer(lines, bars).properties(width=200, height=180)
    names = alt.Header(labelFontWeight="bold", labelAnchor="start", labelFontSize=12)
    models = alt.Facet("model:N", title=None, header=names, sort=list(dict.fromkeys(rows["model"])))
    chart = panel.facet(models, columns=3).resolve_scale(x="independent")
    chart = chart.properties(title=alt.Title(title, subtitle=caption), description=f"{title}. {caption}")
    ending = "" if len(sys.argv) < 2 else "_" + "_".join(dict.fromkeys(rows["model"])).lower()
    mr.save_chart(chart, FIGURES / f"nature_{stem}{ending}")


intervals = "Bars: 95% intervals over documents; position 0 and sinks are left out."
save(
    "size",
    means[logs],
    color="part",
    y="length of update / length of stream",
    title="How large an update is beside the stream that it is added to",
    caption=f"Geometric means over tokens. {intervals}",
    scale="log",
)
save(
    "direction",
    means[means["measure"] == "cos_resid"],
    color="part",
    y="cosine with the stream",
    title="Whether an update points with the stream that it is added to",
    caption=f"Means over tokens. {intervals}",
)
series = {
    "log_norm": "size: lag1 within documents and positions",
    "cos_previous": "direction: cosine with the token before",
    "strangers": "cosine of tokens of different documents",
}
attention = means[(means["hook"] == "attn_out") & means["measure"].isin(series)]
save(
    "persistence",
    attention.assign(series=attention["measure"].map(series)),
    color="series",
    y="coefficient or cosine",
    title="Persistence of attention updates, in size and in direction",
    caption=intervals,
)

# %% Answer.
wide = means.pivot(index=["model", "hook", "layer"], columns="measure", values="estimate")
for model in dict.fromkeys(means["model"]):
    for hook, part in PARTS.items():
        one = wide.loc[(model, hook)]
        relative, cosine = one["np.log(relative)"], one["cos_resid"]
        excess = one["cos_previous"] - one["strangers"]
        alike = excess.rank().corr(one["log_norm"].rank())
        signs = means.query("model == @model and hook == @hook and measure == 'cos_resid'")
        joined = means.query("model == @model and hook == @hook and measure == 'interaction'")
        more, less = (joined["conf_low"] > 0).sum(), (joined["conf_high"] < 0).sum()
        against, along = (signs["conf_high"] < 0).sum(), (signs["conf_low"] > 0).sum()
        print(
            f"{model}, {part}: an update is {relative.iloc[0]:.2f} of its stream in the first layer, "
            f"{relative.iloc[1:].min():.2f} to {relative.iloc[1:].max():.2f} after it; it points with the stream in "
            f"{along} of {len(one)} layers and against it in {against} (cosines {cosine.min():.2f} to "
            f"{cosine.max():.2f}). Its direction is {one['cos_previous'].min():.2f} to {one['cos_previous'].max():.2f} "
            f"like the token's before, of which {one['strangers'].min():.2f} to {one['strangers'].max():.2f} are what "
            f"strangers share; size persists by {one['log_norm'].min():.2f} to {one['log_norm'].max():.2f}. Rank "
            f"correlation of both persistences over {len(one)} layers: {alike:.2f}. Size persists more at tokens whose "
            f"direction does in {more} layers, less in {less}."
        )
