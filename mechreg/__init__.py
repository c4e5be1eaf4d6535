"""mechreg: how much of the attention update to a token is predicted by the updates to the tokens before it.

Every public name is loaded on first use, so that ``import mechreg`` costs nothing and a notebook that only
reads frames never imports torch.
"""

import importlib
from typing import Any

_PUBLIC = {
    "load_model": "models",
    "describe_model": "models",
    "read_corpus": "corpus",
    "tokenize": "corpus",
    "tag_words": "corpus",
    "annotate_pos": "corpus",
    "extract_norms": "norms",
    "token_covariates": "norms",
    "check_model": "check",
    "add_lags": "lags",
    "join_annotations": "annotations",
    "word_norms": "annotations",
    "group_norms": "annotations",
    "LagMoments": "moments",
    "fit_lagged": "fits",
    "lstsq_check": "fits",
    "LaggedFits": "fits",
    "regression_table": "fits",
    "robustness": "sensitivity",
    "lag_order": "sensitivity",
    "compare_to_nulls": "nulls",
    "null_norms": "nulls",
    "shuffle_tokens": "nulls",
    "shuffle_norms": "nulls",
    "random_weights": "nulls",
    "token_means": "nulls",
    "compare_profiles": "universality",
    "ProfileComparison": "universality",
    "intervene": "interventions",
    "Scale": "interventions",
    "Rotate": "interventions",
    "Ablate": "interventions",
    "SetNorm": "interventions",
    "surprise_edits": "interventions",
    "regression_vs_cause": "interventions",
    "CauseMaps": "interventions",
    "replicate": "findings",
    "list_findings": "findings",
    "plot_norms": "charts",
    "plot_betas": "charts",
    "plot_norms_by": "charts",
    "plot_betas_by": "charts",
    "plot_nulls": "charts",
    "plot_specifications": "charts",
    "plot_profiles": "charts",
    "plot_agreement": "charts",
    "plot_equivalence": "charts",
    "plot_dose_response": "charts",
    "plot_cause_maps": "charts",
    "plot_tokens": "charts",
    "plot_linked": "charts",
    "save_chart": "charts",
    "number_differences": "differences",
    "provenance_differences": "differences",
    "Spec": "spec",
    "read_spec": "spec",
    "run_spec": "run",
    "run_moments": "run",
    "make_shard": "run",
    "missing_shards": "run",
    "open_run": "store",
    "report_of_run": "pages",
    "MechregError": "schema",
    "InputError": "schema",
    "SchemaError": "schema",
    "ModelError": "schema",
    "NumericalError": "schema",
}

__version__ = "0.1.0"
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mechreg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mechreg.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
