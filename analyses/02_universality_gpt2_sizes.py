# %% [markdown]
# Question: is the coefficient of the update before (lag1) the same over relative depth in models of every size, or do
# sizes differ by more than two training runs of one size do? Asked of lag1 pooled over documents, and within
# documents and positions: levels and trends that all models take from their texts would make profiles alike.
#
# Runs on the miniatures, two seeds of two sizes included; `python analyses/02_universality_gpt2_sizes.py gpt2
# gpt2-medium gpt2-large gpt2-xl` where those weights can be loaded.

# %%
import sys
from pathlib import Path

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m", "mini-l", "mini-s-b", "mini-m-b"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# Declared before looking: two betas are as good as equal when an update that is 10% larger goes with a next one that
# differs by less than 1%.
MARGIN = 0.1

# Levels taken off, by what the answer calls them.
CONTROLS = {"pooled over documents": (), "within documents and positions": ("doc", "position")}

# %% The same documents for every model, and one regression a layer.
norms = mr.extract_norms(MODELS, mr.read_corpus("demo"), hooks=("attn_out",), progress=False)
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
names = list(norms["model"].unique())
# Seeds of one size are the yardstick: their names differ by "-b".
sizes = {name: name.removesuffix("-b") for name in names}
n_layers = norms.groupby("model", sort=False, observed=True)["layer"].nunique()
deep = list(n_layers.index[n_layers >= 6])


def shapes(rows, effects):
    """Return the test of shapes of deeper models: with six slices of depth or more it can be made against chance."""
    some = rows[rows["model"].isin(deep)]
    fits = mr.fit_lagged(some, "log_norm ~ lag1 + lag2", effects=effects)
    groups = {name: sizes[name] for name in deep}
    agreement = mr.compare_profiles(fits, groups=groups, margin=MARGIN).agreement
    columns = ["model_a", "model_b", "observed", "estimate", "conf_low", "conf_high", "p_value"]
    return agreement.query("measure == 'concordance'")[columns]


# %% Both comparisons, with the tables behind the answer.
found = {}
for name, effects in CONTROLS.items():
    fits = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2", effects=effects)
    found[name] = uni = mr.compare_profiles(fits, term="lag1", groups=sizes, margin=MARGIN)
    print(f"\nlag1 {name}")
    if n_layers.min() < 6 and len(deep) > 1:
        print(shapes(lagged, effects).to_string(index=False, float_format="{:.3f}".format))
    meta = uni.meta[["depth", "estimate", "tau2", "i2", "prediction_low", "prediction_high"]]
    print(meta.to_string(index=False, float_format="{:.3f}".format))
    if len(uni.yardstick):
        yardstick = uni.yardstick[["comparison", "n_pairs", "estimate", "conf_low", "conf_high"]]
        print(yardstick.to_string(index=False, float_format="{:.3f}".format))

# %% Figures: profiles of both, agreement and equivalence within documents and positions.
raw, uni = found.values()
mr.save_chart(
    mr.plot_profiles(raw.profiles, title="lag1 pooled over documents"), FIGURES / "universality_profiles_raw"
)
mr.save_chart(
    mr.plot_profiles(uni.profiles, title="lag1 within documents and positions"),
    FIGURES / "universality_profiles",
)
mr.save_chart(mr.plot_agreement(uni.agreement), FIGURES / "universality_agreement")
mr.save_chart(mr.plot_equivalence(uni.equivalence), FIGURES / "universality_equivalence")

# %% Answer.
for name, compared in found.items():
    print(f"\nlag1 {name}:")
    print("\n".join(compared.verdict))
