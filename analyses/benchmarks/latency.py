"""How long does one paragraph take, against the same with hooks on the raw Hugging Face model?

Both read the text, tokenize it, run one pass and give every layer's norms; both models are loaded. A figure is the
median over rounds, in turn; "first" is the first call, which also looks up the model's hook points.

    python analyses/benchmarks/latency.py MODEL [--text FILE] [--rounds 9] [--threads 1] [--clock cpu]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from extraction import CLOCKS, hook_all
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechreg as mr


def main() -> None:
    """Print the two times and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder")
    parser.add_argument("--text", type=Path, help="by default the first document of the demo corpus")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    text = args.text.read_text(encoding="utf-8") if args.text else mr.read_corpus("demo")["text"].iloc[0]
    hf_model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(args.model),
    )
    kept, model = hook_all(hf_model.eval(), lambda vectors: vectors), mr.load_model(args.model)

    def raw() -> np.ndarray:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            hf_model(ids)
        return np.concatenate([kept[layer][0].norm(dim=-1).numpy() for layer in sorted(kept)])

    def ours() -> np.ndarray:
        return mr.extract_norms(model, [text], progress=False)["norm"].to_numpy()

    times: dict[str, list[float]] = {"raw": [], "ours": []}
    for _ in range(args.rounds + 1):
        for name, run in (("raw", raw), ("ours", ours)):
            began = clock()
            norms = run()
            times[name].append(clock() - began)
    np.testing.assert_allclose(norms, raw(), rtol=1e-4)
    ratios = np.divide(times["ours"], times["raw"])
    print(f"{len(norms) // len(kept)} tokens, {len(kept)} layers, {args.threads} threads, {args.clock} clock")
    print(
        f"raw hooks {np.median(times['raw'][1:]):.3f} s, extract_norms {np.median(times['ours'][1:]):.3f} s"
    )
    print(f"extract_norms takes {np.median(ratios[1:]):.2f} times as long (first call {ratios[0]:.2f})")


if __name__ == "__main__":
    main()
