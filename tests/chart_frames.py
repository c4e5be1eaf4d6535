"""Frames that charts are drawn from, and every chart of the package from them: cheap, random, of any size."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import mechreg as mr
from mechreg.regression import LagSums
from mechreg.schema import COEFFICIENT_COLUMNS, NORM_COLUMNS
from mechreg.universality import compare_profiles

WORDS = (" the", " cat", " sat", ",", " on", " a", " mat", ".\n")
Models = dict[str, int]  # the layers of each


def make_norms(models=None, *, n_tokens=60, docs=2, seed=0, hooks=("attn_out",)) -> pd.DataFrame:
    """Return a norm frame whose position 0 is a sink; ``models`` gives the layers of each."""
    rng = np.random.default_rng(seed)
    position = np.tile(np.arange(n_tokens), docs)
    frames = [
        pd.DataFrame(
            {
                "model": model,
                "hook": hook,
                "layer": layer,
                "depth": (layer + 0.5) / n_layers,
                "doc": np.repeat([f"d{doc}" for doc in range(docs)], n_tokens),
                "window": 0,
                "position": position,
                "token_id": 7,
                "norm": np.exp(
                    rng.normal(2 + layer / n_layers, 0.4, len(position)) + np.where(position == 0, 3.0, 0.0)
                ),
            }
        )
        for model, n_layers in (models or {"m": 3}).items()
        for hook in hooks
        for layer in range(n_layers)
    ]
    return pd.concat(frames, ignore_index=True).astype(NORM_COLUMNS)


def make_coefficients(models=None, *, lags=(1, 2), level=0.95, seed=0, hooks=("attn_out",)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for model, n_layers in (models or {"m": 4}).items():
        for hook in hooks:
            for layer in range(n_layers):
                for term in ("Intercept", *[f"lag{lag}" for lag in lags]):
                    estimate, std_error, df = rng.normal(0.1, 0.1), rng.uniform(0.03, 0.06), 47.0
                    half = stats.t.ppf((1 + level) / 2, df) * std_error
                    p_value = 2 * stats.t.sf(abs(estimate / std_error), df)
                    rows.append(
                        {"model": model, "hook": hook, "layer": layer, "depth": (layer + 0.5) / n_layers}
                        | {"term": term, "estimate": estimate, "std_error": std_error, "df": df}
                        | {"statistic": estimate / std_error, "p_value": p_value}
                        | {"conf_low": estimate - half, "conf_high": estimate + half}
                        | {"p_adjusted": min(1.0, 6 * p_value), "n": 1234, "n_docs": 48, "n_dropped": 0}
                        | {"r_squared": 0.2, "adj_r_squared": 0.2, "cov_type": "crv3"}
                    )
    return pd.DataFrame(rows).astype(COEFFICIENT_COLUMNS)


def make_profiles(layers, *, groups=None, margin=0.1, seed=0):
    rng, docs = np.random.default_rng(seed), 12
    doc, frames = np.repeat(np.arange(docs), 25), []
    for model, n_layers in layers.items():
        for layer in range(n_layers):
            x, noise = rng.normal(size=(2, len(doc)))
            y = (0.3 + 0.2 * rng.normal()) * x + noise
            keys = {"model": model, "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / n_layers}
            frames.append(pd.DataFrame(keys | {"doc": doc, "log_norm": y, "lag1": x}))
    moments = LagSums.from_frame(pd.concat(frames), "log_norm ~ lag1", max_lag=None)
    return compare_profiles(moments, groups=groups, margin=margin, draws=199)


def make_nulls(models=None, nulls=("token_order", "norm_order"), *, hooks=("attn_out",), seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for model, layers in (models or {"m": 3}).items():
        for hook in hooks:
            for layer in range(layers):
                for term in ("lag1", "lag2"):
                    estimate = rng.normal(0.4, 0.1)
                    for null in nulls:
                        other, p = rng.normal(0.1, 0.05), rng.choice([0.001, 0.4])
                        row = {"model": model, "hook": hook, "layer": layer, "depth": (layer + 0.5) / layers}
                        row |= {"term": term, "null": null, "estimate": estimate, "null_estimate": other}
                        row |= {
                            "null_low": other - 0.05,
                            "null_high": other + 0.05,
                            "excess": estimate - other,
                        }
                        row |= {"conf_low": estimate - other - 0.1, "conf_high": estimate - other + 0.1}
                        row |= {"p_value": p, "repeats": 5, "draws": 999, "n": 1234, "n_docs": 12}
                        rows.append(row)
    return pd.DataFrame(rows)


def make_specifications(models=None, names=("baseline", "document_effects", "more_lags"), *, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        for model, layers in (models or {"m": 3}).items():
            for layer in range(layers):
                for term in ("lag1", "lag2"):
                    estimate, r2 = rng.normal(0.4, 0.1), rng.uniform(0.2, 0.6)
                    row = {
                        "specification": name,
                        "model": model,
                        "hook": "attn_out",
                        "layer": layer,
                        "term": term,
                    }
                    row |= {"depth": (layer + 0.5) / layers, "estimate": estimate, "conf_low": estimate - 0.1}
                    row |= {"conf_high": estimate + 0.1, "r_squared": r2, "held_out_r_squared": r2 - 0.05}
                    rows.append(row | {"n": 1000 - 10 * names.index(name), "n_docs": 12})
    return pd.DataFrame(rows)


def norms(models: Models, tokens: int) -> pd.DataFrame:
    """Return a norm frame of so many tokens in ten documents at most, with token strings."""
    docs = min(10, tokens // 40)
    frame = make_norms(models, n_tokens=tokens // docs, docs=docs)
    return frame.assign(token=np.resize(WORDS, len(frame)))


def one_model(models: Models, tokens: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the lagged frame of the first model, its coefficients and its name."""
    first = next(iter(models))
    of_first = {first: models[first]}
    return mr.add_lags(norms(of_first, tokens)), make_coefficients(of_first), first


def plot_norms(models: Models, tokens: int) -> Any:
    return mr.plot_norms(norms(models, tokens))


def plot_betas(models: Models, tokens: int) -> Any:
    return mr.plot_betas(make_coefficients(models))


def plot_layer_explorer(models: Models, tokens: int) -> Any:
    lagged, coefficients, _ = one_model(models, tokens)
    return mr.plot_layer_explorer(lagged, coefficients)


def plot_tokens(models: Models, tokens: int) -> Any:
    lagged, coefficients, model = one_model(models, min(tokens, 2_000))
    first = lagged.assign(doc=lagged["doc"].astype("str")).query("doc == 'd0' and layer == 0")
    return mr.plot_tokens(first, doc="d0", value="lag1", coefficients=coefficients, model=model)


def plot_heatmap(models: Models, tokens: int) -> Any:
    frame = norms(models, min(tokens, 300))
    first = frame.assign(doc=frame["doc"].astype("str")).query("doc == 'd0'")
    return mr.plot_heatmap(first, model=next(iter(models)))


def grouped(models: Models, tokens: int) -> pd.DataFrame:
    """Return coefficients of five groups, which serve as their means of norms too."""
    coefficients = make_coefficients(models, lags=(1,))
    groups = [coefficients.assign(pos=pos, n=tokens // at) for at, pos in enumerate("NVADP", 1)]
    frame = pd.concat(groups, ignore_index=True)
    moved = np.random.default_rng(0).normal(0, 0.1, len(frame))
    numbers = {name: frame[name] + moved for name in ("estimate", "conf_low", "conf_high")}
    return frame.assign(**numbers)


def plot_norms_by(models: Models, tokens: int) -> Any:
    return mr.plot_norms(grouped(models, tokens).query("term == 'lag1'"), by="pos")


def plot_betas_by(models: Models, tokens: int) -> Any:
    return mr.plot_betas(grouped(models, tokens), by="pos")


def plot_head_map(models: Models, tokens: int) -> Any:
    heads = [make_coefficients(models, seed=head).assign(head=head, hook="result") for head in range(3)]
    return mr.plot_head_map(pd.concat(heads, ignore_index=True))


def plot_nulls(models: Models, tokens: int) -> Any:
    return mr.plot_nulls(make_nulls(models))


def plot_autocorrelation(models: Models, tokens: int) -> Any:
    found = mr.autocorrelation(make_norms(models, n_tokens=tokens, docs=4), max_lag=8, draws=99)
    return mr.plot_autocorrelation(found.lags, model=next(iter(models)))


def plot_specifications(models: Models, tokens: int) -> Any:
    return mr.plot_specifications(make_specifications(models))


def profiles(models: Models) -> Any:
    several = models if len(models) > 1 else models | {f"{name}-b": n for name, n in models.items()}
    return make_profiles(several)


def plot_profiles(models: Models, tokens: int) -> Any:
    return mr.plot_profiles(profiles(models).profiles)


def plot_agreement(models: Models, tokens: int) -> Any:
    return mr.plot_agreement(profiles(models).agreement)


def plot_equivalence(models: Models, tokens: int) -> Any:
    return mr.plot_equivalence(profiles(models).equivalence)


def plot_token_agreement(models: Models, tokens: int) -> Any:
    rng, rows = np.random.default_rng(0), []
    several = models if len(models) > 1 else models | {f"{name}-b": n for name, n in models.items()}
    for (a, n_a), (b, n_b) in itertools.combinations(several.items(), 2):
        for i, j in itertools.product(range(n_a), range(n_b)):
            estimate = 0.5 - abs(i / n_a - j / n_b) + rng.normal(0, 0.1)
            rows.append(
                {"model_a": a, "model_b": b, "layer_a": i, "layer_b": j, "depth_a": (i + 0.5) / n_a}
                | {"depth_b": (j + 0.5) / n_b, "estimate": estimate, "conf_low": estimate - 0.1}
                | {"conf_high": estimate + 0.1, "p_adjusted": 0.01 if estimate > 0.1 else 0.6}
                | {"matched": j == i * n_b // n_a, "hook": "attn_out", "column": "norm", "unit": "token"}
                | {
                    "effects": "doc, position, token",
                    "match": "depth",
                    "conf_level": 0.95,
                    "n": 900,
                    "n_docs": 12,
                }
            )
    return mr.plot_token_agreement(pd.DataFrame(rows))


def plot_dose_response(models: Models, tokens: int) -> Any:
    rng, rows = np.random.default_rng(0), []
    kinds = itertools.product((0.0, 0.5, 1.0, 2.0), ("none", "random_direction"), ("loss", "kl", "norms"))
    for dose, control, measure in kinds:
        for model, n_layers in models.items():
            for layer in range(n_layers):
                estimate = abs(dose - 1) * rng.uniform(0.1, 0.3) * (n_layers - layer) / n_layers
                rows.append(
                    {"model": model, "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / n_layers}
                    | {"edit": "scale", "dose": dose, "control": control, "measure": measure}
                    | {"measured_layer": n_layers - 1, "offset": -1, "estimate": estimate}
                    | {"conf_low": estimate - 0.02, "conf_high": estimate + 0.02, "n": tokens, "n_docs": 10}
                )
    return mr.plot_dose_response(pd.DataFrame(rows))


def plot_cause_maps(models: Models, tokens: int) -> Any:
    rng, rows = np.random.default_rng(0), []
    for model, n_layers in models.items():
        for k, l in itertools.product(range(n_layers), repeat=2):
            coefficient, effect = rng.normal(0.1, 0.1), rng.normal(0, 0.02) if l > k else 0.0
            rows.append(
                {"model": model, "hook": "attn_out", "layer": k, "later_layer": l, "n_layers": n_layers}
                | {"coefficient": coefficient, "coefficient_low": coefficient - 0.1}
                | {"coefficient_high": coefficient + 0.1, "n": tokens, "effect": effect, "n_edits": 20}
                | {
                    "effect_low": effect - 0.01 * (l > k),
                    "effect_high": effect + 0.01 * (l > k),
                    "n_docs": 10,
                }
            )
    return mr.plot_cause_maps(pd.DataFrame(rows))


CHARTS: dict[str, Callable[[Models, int], Any]] = {
    chart.__name__: chart
    for chart in (
        *(plot_norms, plot_betas, plot_layer_explorer, plot_tokens, plot_norms_by, plot_betas_by, plot_nulls),
        *(plot_specifications, plot_profiles, plot_agreement, plot_equivalence, plot_dose_response),
        *(plot_token_agreement, plot_cause_maps, plot_autocorrelation, plot_heatmap, plot_head_map),
    )
}
