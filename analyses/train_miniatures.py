"""Train the miniatures: ``python analyses/train_miniatures.py --texts DIR --work DIR``.

DIR holds ``train.jsonl.gz`` and ``heldout.jsonl.gz``, one document a line with ``text source genre licence``.
Checkpoints are in ``--work``: the same command resumes an interrupted training. What `10_training.py` reads is made by
``--texts DIR --work build/training --trajectory build/checkpoints --models mini-s``.
"""

import argparse
import copy
import gzip
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mechreg import miniatures

END = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes one miniature; these constants made the weights that ship."""

    n_layer: int
    n_embd: int
    n_head: int
    seed: int
    tokens: int
    batch: int = 8
    muon_lr: float = 0.02
    adam_lr: float = 0.015
    weight_decay: float = 0.01
    warmup: float = 0.02


RECIPES = {
    "mini-s": Recipe(n_layer=4, n_embd=64, n_head=4, seed=1, tokens=6_000_000),
    "mini-m": Recipe(n_layer=6, n_embd=104, n_head=8, seed=1, tokens=7_000_000, adam_lr=0.01),
    "mini-l": Recipe(n_layer=8, n_embd=128, n_head=8, seed=1, tokens=12_000_000, adam_lr=0.01),
    "mini-s-b": Recipe(n_layer=4, n_embd=64, n_head=4, seed=2, tokens=6_000_000),
    "mini-m-b": Recipe(n_layer=6, n_embd=104, n_head=8, seed=2, tokens=7_000_000, adam_lr=0.01),
}


def read_texts(path: Path) -> list[dict[str, str]]:
    """Return the documents of a .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE in GPT-2's manner: any text in, the same text out, nothing added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return all texts as one line of token ids, an end-of-text token before each."""
    ids = tokenizer.backend_tokenizer.encode_batch(texts)
    end = tokenizer.convert_tokens_to_ids(END)
    return torch.from_numpy(np.concatenate([np.array([end, *line.ids], np.int64) for line in ids]))


def build(recipe: Recipe, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> GPT2LMHeadModel:
    """Return the untrained model of a recipe."""
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=context,
            n_layer=recipe.n_layer,
            n_embd=recipe.n_embd,
            n_head=recipe.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


def optimizers(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks and AdamW for everything else.

    Muon (Jordan et al. 2024) orthogonalises each update; here it reached AdamW's loss in about half the tokens.
    """
    blocks = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".h." in name)]
    return [
        torch.optim.Muon(blocks, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the learning rates: a short warm-up, then a straight line to zero."""
    start = max(1, round(warmup * steps))
    return (step + 1) / start if step < start else (steps - step) / (steps - start)


def trajectory_steps(steps: int) -> list[int]:
    """Return the steps after which a model is saved: none, powers of two (as Pythia's) and all."""
    return [0, *(2**power for power in range(steps.bit_length()) if 2**power < steps), steps]


def train(
    recipe: Recipe,
    ids: torch.Tensor,
    work: Path,
    *,
    vocabulary: int = VOCABULARY,
    context: int = CONTEXT,
    checkpoint_every: int = 200,
    stop_at: int | None = None,
    save: Callable[[GPT2LMHeadModel, int], None] | None = None,
) -> GPT2LMHeadModel:
    """Return the trained model, resumed from a checkpoint in ``work`` if there is one.

    Each step's crops depend on the seed and the step alone, so that a resumed run sees the same batches.
    ``stop_at`` ends the process's work after that step, as a kill would. ``save`` gets a copy of the model, and the
    step, after each of `trajectory_steps`.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    model = build(recipe, vocabulary, context)
    both = optimizers(model, recipe)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in both]
    steps = math.ceil(recipe.tokens / (recipe.batch * context))
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SystemExit(f"{checkpoint} was made by another recipe; remove it or give another --work.")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    saved_at = trajectory_steps(steps) if save else []
    if first == 0 and save:
        save(copy.deepcopy(model), 0)
    model.train()
    began = time.perf_counter()
    for step in range(first, steps):
        crops = np.random.default_rng([recipe.seed, step]).integers(0, len(ids) - context, recipe.batch)
        batch = torch.stack([ids[start : start + context + 1] for start in crops])
        factor = learning_rate(step, steps, recipe.warmup)
        for optimizer, rate in zip(both, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done in saved_at:
            save(copy.deepcopy(model).eval(), done)
        if done % checkpoint_every == 0 or done == steps:
            speed = (done - first) * recipe.batch * context / (time.perf_counter() - began)
            line = {"step": done, "of": steps, "loss": round(loss.item(), 4), "tokens_per_s": round(speed)}
            with open(work / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            print(work.name, line, flush=True)
            saved = {
                "recipe": asdict(recipe),
                "step": done,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in both],
            }
            torch.save(saved, work / "checkpoint.tmp")
            os.replace(work / "checkpoint.tmp", checkpoint)
        if done == stop_at:
            break
    return model.eval()


def export(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder: config, float16 safetensors, tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def predicted_tokens(ids: torch.Tensor, context: int = CONTEXT) -> tuple[torch.Tensor, torch.Tensor]:
    """Return held-out windows and their targets; all figures are means over these same targets."""
    count = (len(ids) - 1) // context
    windows = ids[: count * context].reshape(count, context)
    targets = ids[1 : count * context + 1].reshape(count, context)
    return windows, targets


@torch.inference_mode()
def cross_entropy(folder: Path, windows: torch.Tensor, targets: torch.Tensor) -> float:
    """Return a shipped model's cross-entropy in nats per token, its float16 weights run in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for chunk, wanted in zip(windows.split(16), targets.split(16), strict=True):
        logits = model(chunk).logits.flatten(0, 1)
        total += F.cross_entropy(logits, wanted.flatten(), reduction="sum").item()
    return total / targets.numel()


def baselines(train_ids: torch.Tensor, windows: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Return the unigram's and the interpolated bigram's cross-entropy over the same targets.

    Jelinek-Mercer: p(b|a) = w c(ab)/c(a) + (1 - w) p(b), with w by the count of a, fitted on the last tenth of
    the training text (Jelinek, Mercer 1980); the unigram is add-one smoothed.
    """
    ids = train_ids.numpy()
    cut = len(ids) * 9 // 10

    def counts(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.bincount(part[:-1] * VOCABULARY + part[1:], minlength=VOCABULARY**2)
        return np.bincount(part, minlength=VOCABULARY) + 1.0, pairs.reshape(VOCABULARY, VOCABULARY)

    def parts(before: np.ndarray, after: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, ...]:
        single, pairs = counts(part)
        seen = pairs.sum(1)
        bucket = np.log2(seen[before] + 1).astype(int)
        return single[after] / single.sum(), pairs[before, after] / np.maximum(seen[before], 1), bucket

    low, high, bucket = parts(ids[cut:-1], ids[cut + 1 :], ids[:cut])
    weights = np.full(bucket.max() + 12, 0.5)
    for _ in range(30):  # expectation maximisation of the interpolation weights
        w = weights[bucket]
        share = w * high / (w * high + (1 - w) * low)
        sums = np.bincount(bucket, share, len(weights))
        sizes = np.bincount(bucket, minlength=len(weights))
        weights = np.where(sizes > 0, sums / np.maximum(sizes, 1), weights)
    low, high, bucket = parts(windows.numpy().ravel(), targets.numpy().ravel(), ids)
    w = weights[bucket]
    return float(-np.log(low).mean()), float(-np.log(w * high + (1 - w) * low).mean())


def write_card(out: Path, texts: Path, work: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Evaluate what is exported and write the model card."""
    training = read_texts(texts / "train.jsonl.gz")
    train_ids = encode(tokenizer, [line["text"] for line in training])
    heldout = encode(tokenizer, [line["text"] for line in read_texts(texts / "heldout.jsonl.gz")])
    windows, targets = predicted_tokens(heldout)
    unigram, bigram = baselines(train_ids, windows, targets)
    rows = [f"| unigram | | | | {unigram:.3f} | | |", f"| interpolated bigram | | | | {bigram:.3f} | | |"]
    for name, recipe in RECIPES.items():
        if not (out / name / "model.safetensors").exists():
            continue
        loss = cross_entropy(out / name, windows, targets)
        size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out / name).parameters())
        shape = f"{recipe.n_layer} x {recipe.n_embd}, {recipe.n_head} heads"
        rows.append(
            f"| {name} | {shape} | {size / 1e6:.2f} M | {recipe.tokens / 1e6:.1f} M | {loss:.3f} "
            f"| {loss - unigram:+.2f} | {loss - bigram:+.2f} |"
        )
    sources: dict[tuple[str, str], list[int]] = {}
    for line in training:
        sources.setdefault((line["source"], line["licence"]), []).append(len(line["text"]))
    listed = [
        f"| {source} | {licence} | {len(sizes)} | {sum(sizes) / 1e6:.2f} M |"
        for (source, licence), sizes in sorted(sources.items())
    ]
    card = Path(__file__).with_name("miniatures_card.md").read_text(encoding="utf-8")
    filled = card.replace("{losses}", "\n".join(rows)).replace("{sources}", "\n".join(listed))
    filled = filled.replace("{targets}", f"{targets.numel():,}").replace(
        "{train_tokens}", f"{len(train_ids):,}"
    )
    (out / "README.md").write_text(filled, encoding="utf-8")
    print(filled)


def main() -> None:
    """Train what is not trained yet, export it, write the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--texts", type=Path, required=True, help="folder of train.jsonl.gz, heldout.jsonl.gz"
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs; resumable")
    parser.add_argument(
        "--out", type=Path, default=Path(miniatures.__file__).parent, help="where the folders are written"
    )
    parser.add_argument("--models", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument(
        "--trajectory",
        type=Path,
        help="also save the models here, at steps 0, 1, 2, 4, 8, ... of their training",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--card", action="store_true", help="only evaluate and write the model card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    training = [line["text"] for line in read_texts(args.texts / "train.jsonl.gz")]
    if not (args.work / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(training).save_pretrained(args.work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")
    if not args.card:
        ids = encode(tokenizer, training)
        for name in args.models:

            def save(model: GPT2LMHeadModel, step: int, name: str = name) -> None:
                export(model, tokenizer, args.trajectory / f"{name}-step{step}")

            if (
                args.trajectory
                and (args.work / name).exists()
                and not (args.trajectory / f"{name}-step0").exists()
            ):
                raise SystemExit(f"{args.work / name} was begun without --trajectory; give another --work.")
            trained = train(RECIPES[name], ids, args.work / name, save=save if args.trajectory else None)
            if not args.trajectory:
                export(trained, tokenizer, args.out / name)
    if not args.trajectory:
        write_card(args.out, args.texts, args.work, tokenizer)


if __name__ == "__main__":
    main()
