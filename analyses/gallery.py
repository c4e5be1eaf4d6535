# %% [markdown]
# Question: what does each chart of the package look like, on models that are really trained?
#
# Draws every chart once into figures/gallery and writes the page of them, docs/gallery.md. Charts that need
# interventions or nulls are made from a few documents, to take a minute in all.
# Runs on the miniatures; `python analyses/gallery.py gpt2 gpt2-medium` where those weights can be loaded.

# %%
import sys
from pathlib import Path
from typing import Any

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m", "mini-l", "mini-s-b", "mini-m-b"]
ROOT = Path(__file__).resolve().parents[1]
FORMULA = "log_norm ~ lag1 + lag2"
SCREEN_PPI = 72  # small, for screens; the svg beside it prints
sections: list[str] = []


def show(chart: Any, *, function: str, says: str, option: str = "") -> None:
    """Save one chart, and add it to the page with what it says in words."""
    name = function.removeprefix("plot_") + ("_by" if option else "")
    mr.save_chart(chart, ROOT / "figures" / "gallery" / name, formats=("svg", "png"), ppi=SCREEN_PPI)
    words = chart.to_dict()["description"].replace("[", "(").replace("]", ")")
    sections.append(
        f"## {function}{option}\n\n{says} [Reference](reference/charts.md#mechreg.charts.{function}).\n\n"
        f"![{words}](figures/gallery/{name}.svg)\n"
    )


# %% The text with its parts of speech and registers, and the norms of all models.
documents = mr.read_corpus("demo", tags=True)
few = documents.iloc[::6]
first = mr.load_model(MODELS[0])
tokens = mr.annotate_pos(mr.tokenize(first, documents, spans=True), documents)
norms = mr.extract_norms(MODELS, documents, progress=False)
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
fits = mr.fit_lagged(lagged, FORMULA)
two, of_first = norms["model"].isin(MODELS[:2]), norms["model"] == MODELS[0]

# %% Norms and coefficients.
show(
    mr.plot_norms(norms[two]),
    function="plot_norms",
    says="How large the updates are: log norm by layer, and a ridge of every layer. Above 5,000 tokens, quantiles.",
)
betas = fits.coefficients
show(
    mr.plot_betas(betas[betas["model"].isin(MODELS[:3])]),
    function="plot_betas",
    says="The answer by layer: the coefficient of every lag with its interval, filled where it differs from zero.",
)

heads = mr.extract_norms(MODELS[:2], few, hooks="result", progress=False)
show(
    mr.plot_head_map(mr.fit_lagged(mr.add_lags(heads), FORMULA, effects=("doc", "position"))),
    function="plot_head_map",
    says="The coefficient of every attention head's own contribution, by layer.",
)

# %% One model, to look into: choose a layer in the page; here is the first view.
augmented = fits.augment(lagged)
one = augmented[of_first].merge(
    tokens[["doc", "window", "position", "token"]], on=["doc", "window", "position"]
)
show(
    mr.plot_layer_explorer(one, betas, model=MODELS[0]),
    function="plot_layer_explorer",
    says="One model, linked: a click or the slider chooses a layer, and all panels follow. Every report has it.",
)
text = one[one["doc"].isin(documents["doc"].iloc[:1])]
layer = int(text["layer"].max())
show(
    mr.plot_tokens(text, doc=documents["doc"].iloc[0], value="residual", layer=layer),
    function="plot_tokens",
    says="A document as text, shaded by what the two tokens before do not explain; by norm, lag or loss as well.",
)

show(
    mr.plot_heatmap(text[text["position"] < 84], doc=documents["doc"].iloc[0], value="residual"),
    function="plot_heatmap",
    says="Layers by tokens of one text, of any column, or the difference of two prompts.",
)

# %% By part of speech and by register.
annotated = mr.join_annotations(mr.join_annotations(norms[two], tokens), documents, columns=["source"])
show(
    mr.plot_norms(mr.group_norms(annotated, by="pos"), by="pos"),
    function="plot_norms",
    option=", by a column",
    says="Norms of groups of tokens: here parts of speech; any column will do.",
)
frequent = tokens["pos"].value_counts().index[:5]
kept = mr.add_lags(annotated, lags=(1, 2), skip=1).query("pos in @frequent")
apart = mr.fit_lagged(kept, FORMULA, by="pos")
show(
    mr.plot_betas(apart, by="pos"),
    function="plot_betas",
    option=", by a column",
    says="Coefficients of groups, each beside the others in its layer.",
)

# %% Is it more than chance, and does it survive other regressions?
models = [mr.load_model(name) for name in MODELS[:2]]
some = mr.extract_norms(models, few, progress=False)
nulls = mr.nulls.null_norms(some, models, repeats=3, seed=0)
table = mr.compare_to_nulls(mr.fit_lagged(mr.add_lags(some)), nulls, draws=499)
show(
    mr.plot_nulls(table, term="lag1"),
    function="plot_nulls",
    says="The coefficient beside what it would be with no context at work.",
)
show(
    mr.plot_specifications(mr.specification_curve(lagged[of_first], FORMULA), term="lag1"),
    function="plot_specifications",
    says="The specification curve: one coefficient under every reasonable regression.",
)

# %% How long is a token felt?
show(
    mr.plot_autocorrelation(mr.autocorrelation(norms, draws=199), model=MODELS[0]),
    function="plot_autocorrelation",
    says="How long a token is felt, and how much of it is a slow context: s rho^lag.",
)

# %% Is it the same in all models?
alike = mr.compare_profiles(
    fits, term="lag1", groups={name: name.removesuffix("-b") for name in MODELS}, margin=0.1
)
show(
    mr.plot_profiles(alike),
    function="plot_profiles",
    says="Profiles over relative depth, with bands that hold for a whole profile at once.",
)
show(
    mr.plot_agreement(alike),
    function="plot_agreement",
    says="How much pairs of models agree, and how sure that is.",
)
show(
    mr.plot_equivalence(alike),
    function="plot_equivalence",
    says="Whether pairs of models are the same within a margin that was declared before.",
)

token_by_token = mr.compare_tokens(norms[norms["model"].isin(MODELS[:3])])
show(
    mr.plot_token_agreement(token_by_token),
    function="plot_token_agreement",
    says="Whether models update the same tokens strongly: all layers of one against all layers of another.",
)

# %% Is it a cause?
doses = [mr.Scale(factor) for factor in (0.0, 0.5, 1.0, 2.0)]
effects = mr.intervene(first, few, doses, controls=("random_direction",), positions=1, progress=False)
show(
    mr.plot_dose_response(effects),
    function="plot_dose_response",
    says="What an intervention does, by dose and layer, beside its control.",
)
maps = mr.regression_vs_cause(first, few, per_window=2, progress=False)
show(
    mr.plot_cause_maps(maps),
    function="plot_cause_maps",
    says="Regression beside cause, for every pair of layers.",
)

# %% The page, and the answer.
page = (
    "# Gallery\n\nEvery chart of the package, drawn by `analyses/gallery.py` on the miniatures and the demo corpus. "
    "Each is an Altair chart: it can be changed, and `save_chart` writes it as html, json, svg, png and pdf.\n\n"
)
(ROOT / "docs").mkdir(exist_ok=True)
(ROOT / "docs" / "gallery.md").write_text(page + "\n".join(sections), encoding="utf-8")
print(f"{len(sections)} charts in figures/gallery, and their page in docs/gallery.md.")
