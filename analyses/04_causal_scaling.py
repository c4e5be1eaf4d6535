# %% [markdown]
# Question: is the lag coefficient a cause? If the attention update to a token is made larger, do the updates to the
# next token grow as the regression says, and what does the change cost in next-token prediction? Where few pairs of
# layers, or effects that two halves of the documents do not agree on, leave this open, the answer says so.
#
# The original article closes with it: "causal interventions, where you could manipulate the nature and size of the
# adjustments to determine the impact on downstream processing and next-token prediction" (Mike X Cohen, "The Anatomy
# of the Least Squares Method, Part Four: Modeling GPT activations").
#
# Runs on the miniatures, the edits of whole texts on every third document of the demo corpus, to take one minute and
# not four; `python analyses/04_causal_scaling.py gpt2` where those weights can be loaded.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m", "mini-l"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"
documents = mr.read_corpus("demo")
some = documents.iloc[::3]
first = mr.load_model(MODELS[0])

# %% Size: every attention update of one layer times a factor, beside a random change of the same length.
# Position 0 is left alone: in many models it is an attention sink, and its edit would hide all others.
after_first = {"positions": 1, "progress": False}
doses = [mr.Scale(factor) for factor in (0.0, 0.5, 1.0, 2.0)]
scaled = mr.intervene(first, some, doses, controls=("random_direction",), **after_first)
mr.save_chart(mr.plot_dose_response(scaled), FIGURES / "dose_response")
total = scaled.query("offset == -1 and measure in ('loss', 'kl', 'top1') and control == 'none' and dose != 1")
print(
    total.pivot_table(index=["measure", "dose"], columns="layer", values="estimate").to_string(
        float_format="%.3f"
    )
)

# %% Regression beside cause: log norm of layer l at t, by log norm of layer k at t-1, observed and moved. The
# coefficients are within documents and positions; as they are without these controls is beside them.
maps, raw = [], []
for name in MODELS:
    model = mr.load_model(name)
    maps.append(mr.regression_vs_cause(model, documents, per_window=2, progress=False))
    raw.append(mr.regression_vs_cause(model, documents, per_window=2, effects=(), progress=False))
pairs = pd.concat([found.pairs for found in maps])
agreement = pd.concat([found.agreement for found in maps])
mr.save_chart(mr.plot_cause_maps(pairs, agreement=agreement), FIGURES / "cause_maps")
shown = pd.concat([found.agreement for pair in zip(raw, maps, strict=True) for found in pair])
print(shown.to_string(index=False, float_format="%.2f"))

# %% Surprise: norms at what the lag model predicts from the two tokens before, or k residual standard deviations off.
lagged = mr.add_lags(mr.extract_norms(first, some, progress=False))
augmented = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2").augment(lagged)
surprise = mr.intervene(
    first, some, mr.interventions.surprise_edits(augmented), measures=("loss", "kl"), progress=False
)
mr.save_chart(mr.plot_dose_response(surprise), FIGURES / "surprise")


# %% Answer.
def words(found: mr.interventions.CauseMaps, controls: str) -> str:
    """Return what the coefficients of one map are, and how they go with the effects."""
    table, rank = found.pairs, found.agreement.iloc[0]
    own = table.loc[table["layer"] == table["later_layer"], "coefficient"]
    above = table.loc[table["later_layer"] > table["layer"], "coefficient"]
    return (
        f"{controls}, the coefficient of t-1 is {own.min():.2f} to {own.max():.2f} within a layer and "
        f"{above.min():.2f} to {above.max():.2f} from layer k up to layer l > k; rank correlation with the effects "
        f"{rank['spearman']:.2f} ({rank['conf_low']:.2f} to {rank['conf_high']:.2f}): {rank['verdict']}"
    )


for with_effects, without in zip(maps, raw, strict=True):
    table, rank = with_effects.pairs, with_effects.agreement.iloc[0]
    own = table.loc[table["layer"] == table["later_layer"], "effect"].abs().max()
    above = table.loc[table["later_layer"] > table["layer"], "effect"]
    is_seen = np.isfinite(rank["detectable"])
    seen = f"a true correlation of {rank['detectable']:.2f} or more" if is_seen else "none, however strong,"
    print(
        f"{rank['model']} ({rank['n_docs']} documents): the effect of scaling an update at t-1 is {own:g} on its own "
        f"layer at t and {above.min():.3f} to {above.max():.3f} on those above. {words(without, 'As it is')}. "
        f"{words(with_effects, 'Within documents and positions')}. Reliability of the effects "
        f"{rank['effect_reliability']:.2f}; {rank['n_pairs']} pairs would show {seen} in 80% of cases."
    )
worst = total.query("measure == 'loss' and dose == 0").set_index("layer")["estimate"]
cost = surprise.query("offset == -1 and measure == 'loss'").groupby("dose")["estimate"].mean()
print(
    f"{first.cfg.model_name}: without a layer's updates the loss rises by {worst.min():.3f} (layer {worst.idxmin()}) "
    f"to {worst.max():.3f} nats (layer {worst.idxmax()}). Norms at the predicted size cost {cost[0]:.3f} nats on "
    f"average over layers, two residual sd below it {cost[-2]:.3f}, two above {cost[2]:.3f}."
)
print("A coefficient says which norms go together; only the intervention says what follows from a change.")
