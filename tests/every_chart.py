"""Every chart of the package from cheap random frames, of so many models, layers and tokens as a test asks for."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import test_charts
import test_charts_universality
import test_null_charts

import mechreg as mr

WORDS = (" the", " cat", " sat", ",", " on", " a", " mat", ".\n")
Models = dict[str, int]  # the layers of each


def norms(models: Models, tokens: int) -> pd.DataFrame:
    """Return a norm frame of so many tokens in ten documents at most, with token strings."""
    docs = min(10, tokens // 40)
    frame = test_charts.make_norms(models, n_tokens=tokens // docs, docs=docs)
    return frame.assign(token=np.resize(WORDS, len(frame)))


def one_model(models: Models, tokens: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the lagged frame of the first model, its coefficients and its name."""
    first = next(iter(models))
    of_first = {first: models[first]}
    return mr.add_lags(norms(of_first, tokens)), test_charts.make_coefficients(of_first), first


def plot_norms(models: Models, tokens: int) -> Any:
    return mr.plot_norms(norms(models, tokens))


def plot_betas(models: Models, tokens: int) -> Any:
    return mr.plot_betas(test_charts.make_coefficients(models))


def plot_layer_explorer(models: Models, tokens: int) -> Any:
    lagged, coefficients, _ = one_model(models, tokens)
    return mr.plot_layer_explorer(lagged, coefficients)


def plot_tokens(models: Models, tokens: int) -> Any:
    lagged, coefficients, model = one_model(models, min(tokens, 2_000))
    first = lagged.assign(doc=lagged["doc"].astype("str")).query("doc == 'd0' and layer == 0")
    return mr.plot_tokens(first, doc="d0", value="lag1", coefficients=coefficients, model=model)


def grouped(models: Models, tokens: int) -> pd.DataFrame:
    """Return coefficients of five groups, which serve as their means of norms too."""
    coefficients = test_charts.make_coefficients(models, lags=(1,))
    groups = [coefficients.assign(pos=pos, n=tokens // at) for at, pos in enumerate("NVADP", 1)]
    frame = pd.concat(groups, ignore_index=True)
    moved = np.random.default_rng(0).normal(0, 0.1, len(frame))
    numbers = {name: frame[name] + moved for name in ("estimate", "conf_low", "conf_high")}
    return frame.assign(**numbers)


def plot_norms_by(models: Models, tokens: int) -> Any:
    return mr.plot_norms_by(grouped(models, tokens).query("term == 'lag1'"))


def plot_betas_by(models: Models, tokens: int) -> Any:
    return mr.plot_betas_by(grouped(models, tokens))


def plot_nulls(models: Models, tokens: int) -> Any:
    return mr.plot_nulls(test_null_charts.make_comparison(models))


def plot_specifications(models: Models, tokens: int) -> Any:
    return mr.plot_specifications(test_null_charts.make_specifications(models))


def profiles(models: Models) -> Any:
    several = models if len(models) > 1 else models | {f"{name}-b": n for name, n in models.items()}
    return test_charts_universality.make_comparison(several)


def plot_profiles(models: Models, tokens: int) -> Any:
    return mr.plot_profiles(profiles(models).profiles)


def plot_agreement(models: Models, tokens: int) -> Any:
    return mr.plot_agreement(profiles(models).agreement)


def plot_equivalence(models: Models, tokens: int) -> Any:
    return mr.plot_equivalence(profiles(models).equivalence)


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
        plot_cause_maps,
    )
}
