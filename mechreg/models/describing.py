"""A model's architecture at a glance, its parameters by component, its hook points."""

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechreg.models.hook_points import HOOK_POINTS
from mechreg.models.identity import record_of
from mechreg.models.loading import load_model

# Component -> how its parameters are called in HookedTransformer and in Hugging Face's architectures.
COMPONENTS = {
    "token embedding": r"wte|embed\.W_E|embed_tokens|embed_in|word_embeddings",
    "position embedding": r"wpe|W_pos|pos_embed|embed_positions",
    "attention": r"attn\.|attention\.",
    "mlp": r"mlp|\.fc\d",
    "layer norms": r"ln_?\d|ln_f|norm",
    "unembedding": r"lm_head|unembed|embed_out",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelDescription:
    """The architecture at a glance; printing it shows all of it."""

    architecture: dict[str, Any]
    parameters: pd.DataFrame
    hook_points: pd.DataFrame

    def __str__(self) -> str:
        width = max(len(key) for key in self.architecture)
        lines = [f"{key:<{width}}  {_shown(value)}" for key, value in self.architecture.items()]
        parameters = self.parameters.to_string(index=False, formatters={"parameters": "{:,}".format})
        return "\n".join([*lines, "", parameters, "", self.hook_points.to_string(index=False)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(key, _shown(value)) for key, value in self.architecture.items()]
        architecture = pd.DataFrame(rows).to_html(header=False, index=False, border=0)
        parameters = self.parameters.to_html(index=False, border=0, formatters={"parameters": "{:,}".format})
        return architecture + parameters + self.hook_points.to_html(index=False, border=0, max_rows=20)


def describe_model(model: Any) -> ModelDescription:
    """Return a model's architecture, its parameters by component and its hook points with their shapes.

    Parameters
    ----------
    model : str, Path or model
        Anything that `load_model` takes.

    Returns
    -------
    ModelDescription
        ``architecture`` (dict), ``parameters`` (component, parameters: a tensor that serves twice is counted
        once, so that the total is Hugging Face's), ``hook_points`` (hook, hook_point, shape).

    Examples
    --------
    >>> describe_model("mini-s").architecture["blocks"]
    4
    """
    model = load_model(model)
    cfg, record = model.cfg, record_of(model)
    architecture = {
        "model": record.name,
        "class": type(model).__name__,
        "blocks": cfg.n_layers,
        "d_model": cfg.d_model,
        "heads": cfg.n_heads,
        "d_head": cfg.d_head,
        "context": cfg.n_ctx,
        "vocabulary": cfg.d_vocab,
        "activation": cfg.act_fn,
        "processing": record.processing,
        "dtype": record.dtype,
    }
    sizes = {"head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model}
    rows = [
        {
            "hook": hook,
            "hook_point": f"blocks.{{layer}}.{place}",
            "shape": " x ".join(str(sizes.get(axis, axis)) for axis in axes.split()),
        }
        for hook, (place, axes) in HOOK_POINTS.items()
        if f"blocks.0.{place}" in model.hook_dict
    ]
    return ModelDescription(
        architecture=architecture, parameters=_count_parameters(model), hook_points=pd.DataFrame(rows)
    )


def _count_parameters(model: Any) -> pd.DataFrame:
    counts = dict.fromkeys([*COMPONENTS, "other"], 0)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for key, tensor in model.named_parameters():
        identity = (tensor.data_ptr(), tuple(sorted(tensor.shape)))  # W_U may be the transpose of W_E
        # TransformerLens adds an unembedding bias of zeros, and the bridge keeps a joint qkv beside q, k and v.
        is_added = re.search(r"unembed\.b_U$|lm_head.*bias$|embed_out.*bias$", key) and not bool(tensor.any())
        if identity in seen or is_added or ".qkv." in key:
            continue
        seen.add(identity)
        part = key.replace("_original_component.", "")
        component = next((name for name, pattern in COMPONENTS.items() if re.search(pattern, part)), "other")
        counts[component] += tensor.numel()
    rows = [{"component": name, "parameters": count} for name, count in counts.items() if count]
    return pd.DataFrame([*rows, {"component": "total", "parameters": sum(counts.values())}])


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
