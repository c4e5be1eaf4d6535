# %% [markdown]
# Question: when in training does the persistence of updates become what it is, and when do models come to update the
# same tokens strongly?
#
# Runs on checkpoints of mini-s, which `analyses/train_miniatures.py --trajectory build/checkpoints` makes (it has
# the command); `python analyses/10_training.py org/model@step0 org/model@step512 ...` on any others, folders or hub
# names that end in their step, with `--other` a model of the same tokenizer to compare tokens with.

# %%
import argparse
from pathlib import Path

import altair as alt
import pandas as pd

import mechreg as mr

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser(description="Checkpoints of one training.")
parser.add_argument("models", nargs="*", help="folders or hub names, ending in step0, step1, ...")
parser.add_argument("--other", help="a trained model, such as another seed")
options = parser.parse_args()
made = sorted((ROOT / "build" / "checkpoints").glob("mini-s-step*"))
models = options.models or [str(path) for path in made]
other = options.other or (None if options.models else "mini-s-b")
if not models:
    raise SystemExit("There are no checkpoints; analyses/train_miniatures.py says how to make them.")
WITHIN = {"effects": ("doc", "position")}
# b1 lag1 + b2 lag2 = (b1 + b2) lag1 + b2 (lag2 - lag1): the coefficient of lag1 is the sum, with its own interval.
SUM = "log_norm ~ lag1 + I(lag2 - lag1)"


def trajectory(norms: pd.DataFrame, formula: str, term: str, **of_fit) -> pd.DataFrame:
    """Return one coefficient by step and layer."""
    table = mr.fit_lagged(mr.add_lags(norms), formula, **of_fit).coefficients
    rows = table[table["term"] == term]
    step = rows["model"].astype("str").str.extract(r"step(\d+)$", expand=False).astype(int)
    return rows.assign(step=step).sort_values(["step", "layer"], ignore_index=True)


# %% Norms and losses of every checkpoint in one pass each; then the same tokens in random order.
documents = mr.read_corpus("demo")
norms = mr.extract_norms(models, documents, covariates=("surprisal",), progress=False)
(shuffled,) = mr.nulls.null_norms(norms, models, nulls="token_order", repeats=1, seed=0)["token_order"]
persistence = pd.concat(
    [
        trajectory(norms, SUM, "lag1").assign(control="no control", tokens="as they are"),
        trajectory(norms, SUM, "lag1", **WITHIN).assign(control="within", tokens="as they are"),
        trajectory(shuffled, SUM, "lag1", **WITHIN).assign(control="within", tokens="shuffled"),
    ],
    ignore_index=True,
)
betas = {term: trajectory(norms, "log_norm ~ lag1 + lag2", term, **WITHIN) for term in ("lag1", "lag2")}
step_of = dict(zip(persistence["model"], persistence["step"], strict=True))
loss = (
    norms.query("layer == 0").groupby("model", observed=True)["surprisal"].mean().rename("loss").reset_index()
)
loss = loss.astype({"model": "str"})
loss = loss.assign(step=loss["model"].map(step_of)).sort_values("step", ignore_index=True)

# %% Token agreement with the end of the training, and with another seed's.
first, *_, last = loss["model"]
pairs = [(model, last, "its own end") for model in loss["model"] if model != last]
if other is not None:
    of_other = mr.extract_norms(other, documents, progress=False)
    norms = pd.concat([norms.astype({"model": "str"}), of_other.astype({"model": "str"})], ignore_index=True)
    pairs += [(model, of_other["model"].iloc[0], "another seed's end") for model in loss["model"]]
agreement = []
for model, end, against in pairs:
    found = mr.compare_tokens(norms[norms["model"].isin([model, end])], draws=99).pairs
    agreement.append(found.assign(step=step_of[model], against=against))
agreement = pd.concat(agreement, ignore_index=True)


# %%
def panel(rows: pd.DataFrame, y: str, title: str, heading: str, *hues) -> alt.LayerChart:
    """Return lines over the training's steps, with intervals where there are any."""
    values = [0, *(4**power for power in range(9) if 4**power < 0.7 * rows["step"].max()), rows["step"].max()]
    scale = alt.Scale(type="symlog", constant=1)
    axis = alt.Axis(values=values, grid=False)
    base = alt.Chart(rows, title=heading).encode(alt.X("step:Q", scale=scale, axis=axis), *hues)
    room = 0.08 * (rows[y].max() - rows[y].min())
    near = alt.Scale(domain=[rows[y].min() - room, rows[y].max() + room], nice=True, zero=False)
    flush = alt.Axis(labelFlush=True)  # the last tick's label would push up the heading
    lines = base.mark_line(point=alt.OverlayMarkDef(size=18)).encode(
        alt.Y(f"{y}:Q", title=title, scale=near, axis=flush)
    )
    if "conf_low" not in rows:
        return alt.layer(lines)
    bars = base.mark_rule(opacity=0.5, clip=True).encode(
        alt.Y("conf_low:Q", scale=near, axis=flush), alt.Y2("conf_high:Q")
    )
    return alt.layer(bars, lines)


def save(panels: list[alt.LayerChart], stem: str, title: str, caption: str) -> None:
    """Save panels, two in a row."""
    sized = [one.properties(width=250, height=170) for one in panels]
    apart = {"color": "independent", "strokeDash": "independent"}
    rows = [alt.hconcat(*sized[at : at + 2]).resolve_scale(**apart) for at in range(0, len(sized), 2)]
    chart = alt.vconcat(*rows).resolve_scale(**apart)
    chart = chart.properties(title=alt.Title(title, subtitle=caption), description=f"{title}. {caption}")
    mr.save_chart(
        chart, ROOT / "figures" / (stem if not options.models else f"{stem}_{Path(last).name}".lower())
    )


LEGEND = alt.Legend(symbolOpacity=1)
layer = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), legend=LEGEND)
without_legend = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), legend=None)
dash = alt.StrokeDash("tokens:N", sort=["as they are", "shuffled"])
against = alt.Color("against:N", title="with", sort=["its own end"], legend=LEGEND)
of_control = dict(list(persistence.groupby("control")))
save(
    [
        panel(loss, "loss", "nats per token", "Loss on the demo corpus"),
        panel(
            agreement,
            "estimate",
            "rank correlation",
            "Agreement by token",
            against,
        ),
        panel(of_control["no control"], "estimate", "b1 + b2", "No control", without_legend),
        panel(of_control["within"], "estimate", "b1 + b2", "Within documents and positions", layer, dash),
    ],
    "training",
    f"Persistence of attention updates over the training that ends in {Path(last).name}",
    f"b1 + b2 of log_norm ~ lag1 + lag2. Bars (cut at the edge): 95% intervals over {len(documents)} documents.",
)
colors = {"lag1": without_legend, "lag2": layer}
save(
    [panel(rows, "estimate", f"beta of {term}", term, colors[term]) for term, rows in betas.items()],
    "training_betas",
    "Coefficients over training, within documents and positions",
    f"Bars (cut at the edge): 95% intervals over {len(documents)} documents.",
)

# %% Answer.
wide = of_control["within"].pivot(index="step", columns=["tokens", "layer"], values="estimate")
print(loss.set_index("step")["loss"].round(2).to_string())
print(wide.round(2).to_string())
print(agreement.pivot(index="step", columns="against", values="estimate").round(2).to_string())
real = wide["as they are"]
moved = (real - real.iloc[0]) / (real.iloc[-1] - real.iloc[0])
stays = moved[::-1].cummin()[::-1] >= 0.5
half = {at: int(stays.index[stays[at].to_numpy().argmax()]) for at in stays}
at_half = loss.set_index("step")["loss"][list(half.values())]
excess = real.iloc[-1] - wide["shuffled"].iloc[-1]
by_layer = " ".join(f"{value:.2f}" for value in real.iloc[-1])
print(
    f"b1 + b2 within documents and positions is {real.iloc[0].min():.2f} to {real.iloc[0].max():.2f} at step "
    f"{real.index[0]}, and {by_layer} by layer at step {real.index[-1]}; half of the way is gone for good by steps "
    f"{', '.join(map(str, half.values()))}, where the loss is {at_half.min():.2f} to {at_half.max():.2f} (from "
    f"{loss['loss'].iloc[0]:.2f} to {loss['loss'].iloc[-1]:.2f}). At the end the order of the tokens is worth "
    f"{excess.min():.2f} to {excess.max():.2f} of it."
)
