# %% [markdown]
# Question: is the coefficient of the update before (lag1) the same over relative depth in models of every size, or do
# sizes differ by more than two training runs of one size do?
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

# %% The same documents for every model, and one regression a layer.
norms = mr.extract_norms(MODELS, mr.read_corpus("demo"), hooks=("attn_out",))
fits = mr.fit_lagged(mr.add_lags(norms, lags=(1, 2), skip=1), "log_norm ~ lag1 + lag2")

# %% Seeds of one size are the yardstick: their names differ by "-b".
names = list(fits.coefficients["model"].unique())
sizes = {name: name.removesuffix("-b") for name in names}
uni = mr.compare_profiles(fits, term="lag1", groups=sizes, margin=MARGIN)
mr.save_chart(mr.plot_profiles(uni.profiles), FIGURES / "universality_profiles")
mr.save_chart(mr.plot_agreement(uni.agreement), FIGURES / "universality_agreement")
mr.save_chart(mr.plot_equivalence(uni.equivalence), FIGURES / "universality_equivalence")

# %% Deeper models alone: with six slices of depth or more, shapes can be tested against chance.
n_layers = uni.profiles.groupby("model", sort=False).size()
deep = list(n_layers.index[n_layers >= 6])
if n_layers.min() < 6 and len(deep) > 1:
    some = norms[norms["model"].isin(deep)]
    deeper = mr.compare_profiles(
        mr.fit_lagged(mr.add_lags(some, lags=(1, 2), skip=1), "log_norm ~ lag1 + lag2"),
        groups={name: sizes[name] for name in deep},
        margin=MARGIN,
    )
    columns = ["model_a", "model_b", "observed", "estimate", "conf_low", "conf_high", "p_value"]
    shapes = deeper.agreement.query("measure == 'concordance'")[columns]
    print(shapes.to_string(index=False, float_format="{:.3f}".format))

# %% The tables behind the answer.
print(
    uni.meta[["depth", "estimate", "tau2", "i2", "prediction_low", "prediction_high"]]
    .round(3)
    .to_string(index=False)
)
if len(uni.yardstick):
    print(
        uni.yardstick[["comparison", "n_pairs", "estimate", "conf_low", "conf_high"]]
        .round(3)
        .to_string(index=False)
    )

# %% Answer.
print("\n".join(uni.verdict))
