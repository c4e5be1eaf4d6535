"""Which architectures give right numbers, and where does each add its attention to the residual stream?

A tiny model with random weights of every family that the installed TransformerLens bridges and transformers builds is
loaded, checked (`mechreg.check_model`: the sum of a block, raw Hugging Face hooks, ragged batches), and intervened on:
half the attention's update in a middle layer must move the later norms as a hook on the raw Hugging Face model does.
Every family has a process of its own. Results are kept by the version of TransformerLens, and the page
docs/architectures.md is written from those of all versions:

    python analyses/architectures.py            # in each environment
    python analyses/architectures.py llama opt  # some families anew
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import mechreg as mr
from mechreg.check import addition_of, blocks_of
from mechreg.models import record_of

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "build" / "architectures", ROOT / "docs" / "architectures.md"
SECONDS = 240
VERSION = importlib.metadata.version("transformer-lens")

# Keys by which configs give sizes, and small values; each family takes those that it has.
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "sliding_window": 8,
    "window_size": 8,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    "max_seq_len": 64,
    "n_ctx": 64,
    "lru_width": 32,
    "attention_window_size": 8,
    "context_length": 64,
    "attention_hidden_size": 32,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_num_experts": 4,
    "moe_k": 2,
    "intermediate_size_mlp": 48,
    "mlp_hidden_size": 48,
    "moe_topk": 2,
    "num_dense_layers": 1,
    # Keys and queries of low rank.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
    "o_lora_rank": 8,
    "o_groups": 2,
    # States in place of attention.
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_headdim": 16,
    "n_mamba_heads": 4,
    "mamba_dt_rank": 4,
}
OWN: dict[str, dict[str, Any]] = {
    "bert": {"is_decoder": True},
    "gpt_neo": {"attention_types": [[["global", "local", "local"], 1]]},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "granitemoe": {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {"n_groups": 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"]},
}
# Properties, or sizes that follow from others.
WITHOUT = {"falcon": {"head_dim"}, "zamba2": {"head_dim", "attention_hidden_size"}}
COLUMNS = {
    "loads": "logits of 16 tokens",
    "sum": "sum of a block",
    "parity": "raw hooks",
    "batch": "ragged batch",
    "scale": "Scale",
}
ROWS = {
    "sum": "resid_pre + attn_out + mlp_out = resid_post",
    "parity": "Hugging Face parity",
    "batch": "ragged batch equals one by one",
}


def families() -> list[str]:
    """Return the causal families of transformers whose class the installed TransformerLens bridges."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return sorted(
        family
        for family, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        if {names} & set(SUPPORTED_ARCHITECTURES)
    )


def tiny(family: str) -> Any:
    """Return a small model of a family, all of its weights random."""
    default = AutoConfig.for_model(family)
    if hasattr(default, "vision_config"):
        if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family].endswith("ForConditionalGeneration"):
            with torch.device("meta"):  # large, and refused by its config
                return AutoModelForCausalLM.from_config(default)
        family = default.get_text_config().model_type
        default = AutoConfig.for_model(family)
    known = set(default.to_dict()) | set(default.attribute_map)
    of_low_rank = {"head_dim": 4, "num_key_value_heads": 4} if "qk_rope_head_dim" in known else {}
    sizes = SIZES | of_low_rank | OWN.get(family, {})
    given = {key: sizes[key] for key in sizes if key in known - WITHOUT.get(family, set())}
    config = AutoConfig.for_model(family, **given)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # fresh biases are zero, and fresh scores so small that attention is an average
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def half_update_moves(model: Any, original: Any) -> float:
    """Return how far the later log norms move differently from those of the raw Hugging Face model, of the change."""
    edited, n_layers = int(model.cfg.n_layers) // 2, int(model.cfg.n_layers)
    tokens = pd.DataFrame({"doc": "a", "window": 0, "position": range(24), "token_id": range(3, 27)})
    effects = mr.intervene(model, tokens, mr.Scale(0.5), layers=[edited], measures=["norms"], progress=False)
    ours = effects.query("offset == -1").set_index("measured_layer")["estimate"]
    places = [addition_of(block, "attn_out") for block in blocks_of(original)]
    logs: dict[int, torch.Tensor] = {}

    def halve(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        is_many = isinstance(output, tuple | list)
        vectors = output[0] if is_many else output
        held = places[edited].residual(args, kwargs)
        vectors = held + 0.5 * (vectors - held)
        return type(output)([vectors, *output[1:]]) if is_many else vectors

    def listen(layer: int) -> Any:
        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            vectors = output[0] if isinstance(output, tuple | list) else output
            added = (vectors - places[layer].residual(args, kwargs)) * places[layer].factor
            logs[layer] = added.double().norm(dim=-1).log().mean()

        return keep

    means = []
    for change in (False, True):
        with contextlib.ExitStack() as undo:
            for layer in range(edited + 1, n_layers):
                hook = places[layer].module.register_forward_hook(listen(layer), with_kwargs=True)
                undo.callback(hook.remove)
            if change:
                hook = places[edited].module.register_forward_hook(halve, with_kwargs=True)
                undo.callback(hook.remove)
            with torch.no_grad():
                original(torch.tensor([tokens["token_id"].tolist()]), use_cache=False)
        means.append(np.array([float(logs[layer]) for layer in range(edited + 1, n_layers)]))
    expected = means[1] - means[0]
    found = ours.loc[list(range(edited + 1, n_layers))].to_numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def judge(family: str) -> dict[str, Any]:
    """Return the verdicts on one family; what ends them early is under "reason"."""
    verdicts: dict[str, Any] = {"family": family, "reason": ""}
    step = "not built"
    try:
        original = tiny(family)
        verdicts["class"] = type(original).__name__
        original.set_attn_implementation("eager")
        step = "refused"
        model = mr.load_model(original)
        verdicts["loads"] = record_of(model).verified
        table = mr.check_model(model, reference=original).set_index("check")
        verdicts |= {key: float(table["value"][row]) for key, row in ROWS.items() if row in table.index}
        failed = table.loc[~table["passed"], "detail"]
        verdicts["reason"] = "; ".join(f"{row}: {detail}" for row, detail in failed.items())
        if "parity" not in verdicts:
            return verdicts
        if table["detail"][ROWS["sum"]].startswith("not tried"):
            verdicts["sum"] = None
        verdicts["place"] = str(addition_of(blocks_of(original)[0], "attn_out"))
        step = "Scale could not be tried"
        verdicts["scale"] = half_update_moves(model, original)
        if not verdicts["scale"] < 1e-3:
            verdicts["reason"] += (
                f"Scale moves later norms by {verdicts['scale']:.1g} of the change otherwise"
            )
    except Exception as error:  # each architecture fails in a way of its own
        traceback.print_exc()
        verdicts["reason"] = f"{step}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return verdicts


def child(family: str, out: Path) -> None:
    """Write the verdicts on one family; no process may be started, as TransformerLens does to install packages."""

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError(f"a process was to be started: {args[:1]}")

    subprocess.Popen, os.system = refuse, refuse  # type: ignore[misc, assignment]
    torch.set_num_threads(1)
    out.write_text(json.dumps(judge(family)))


def judged_apart(family: str, out: Path) -> dict[str, Any]:
    """Return the verdicts of a process of its own, or how that ended."""
    out.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=child, args=(family, out))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return {"family": family, "reason": f"took more than {SECONDS} seconds"}
    if not out.exists():
        return {"family": family, "reason": f"the process ended with {process.exitcode}"}
    return json.loads(out.read_text())


def verdict(row: dict[str, Any]) -> str:
    """Return "right", "not built", "refused", or "alarm" where `check_model` says that the numbers are others."""
    if row["reason"].startswith("not built"):
        return "not built"
    if row.get("parity") is None:
        return "refused"
    return "alarm" if row["reason"] else "right"


def page(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return docs/architectures.md."""
    words = [
        "# Architectures",
        "",
        "Every causal family that TransformerLens bridges and transformers builds, with random weights of three or so",
        "blocks, by `analyses/architectures.py`. **attn_out's place** is where Hugging Face's block has what its",
        "attention adds to the residual stream: a module's output, after a norm or a factor that follows the",
        "attention, or less the residual stream where the module adds that itself. **Right** means that",
        "",
        "- the logits are Hugging Face's (loading compares them, and refuses what differs);",
        "- resid_pre + attn_out + mlp_out = resid_post in every block (where a norm ends the block, another one reads",
        "  resid_pre + attn_out);",
        "- norms equal those of a forward hook on the raw Hugging Face model, at that place;",
        "- a ragged batch gives the numbers of each text alone;",
        "- `Scale(0.5)` of one layer's attn_out moves the later norms as a hook on the Hugging Face model does.",
        "",
        "Numbers are the largest relative differences. A dash is a sum that could not be tried, since the bridge",
        "lacks a hook point for it or does not call it. Refused families are refused in a sentence, by `load_model`",
        "or `check_model`.",
        "",
    ]
    for version, rows in sorted(results.items()):
        kinds = [verdict(row) for row in rows]
        words += [
            f"## TransformerLens {version}",
            "",
            f"{len(rows)} families: {kinds.count('right')} right, {kinds.count('refused')} refused, "
            f"{kinds.count('alarm')} on which `check_model` raises the alarm, {kinds.count('not built')} that "
            "transformers does not build small and without further packages.",
            "",
            "| family | class | attn_out's place | " + " | ".join(COLUMNS.values()) + " |",
            "|---" * (3 + len(COLUMNS)) + "|",
        ]
        for row, kind in zip(rows, kinds, strict=True):
            if kind == "right":
                numbers = (row.get(key) for key in COLUMNS)
                cells = ["—" if number is None else f"{number:.0e}" for number in numbers]
                words.append(f"| {row['family']} | {row['class']} | `{row['place']}` | {' | '.join(cells)} |")
        for kind in ("refused", "alarm", "not built"):
            told = [row for row, other in zip(rows, kinds, strict=True) if other == kind]
            words += ["", f"| {kind} | reason |", "|---|---|"] if told else []
            words += [f"| {row['family']} | {row['reason'].removeprefix(f'{kind}: ')} |" for row in told]
        words.append("")
    return "\n".join(words)


def main() -> None:
    """Judge the families, keep the verdicts, and write the page where all families have one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="all by default")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{VERSION}.json"
    kept = {row["family"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    known = families()
    for family in args.families or known:
        kept[family] = judged_apart(family, RESULTS / f"one-{VERSION}.json")
        print(family, verdict(kept[family]), kept[family]["reason"], flush=True)
    file.write_text(json.dumps([kept[family] for family in known if family in kept], indent=1))
    if set(known) <= set(kept):
        results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("[0-9]*.json")}
        PAGE.write_text(page(results), encoding="utf-8")
        print(pd.Series([verdict(kept[family]) for family in known]).value_counts().to_string())


if __name__ == "__main__":
    main()
