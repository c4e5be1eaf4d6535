# ruff: noqa: E501 (a row of the table is a line)
"""Bad input and hostile files: each is refused in one sentence that names it and says what to do, and nothing is lost.

One table. Each case is put into a folder of its own beside two good texts and a finished run, and a command is
carried out there. Exact: exit code 2, one line on standard error, and every file that was there before has its bytes
afterwards; nothing new is there either, except in the cases that can only be known from the numbers (``begun``),
whose run folder stays so that the same command goes on from it. What has no command is a call that must raise one
of mechreg's errors, held to the same. How each module words its refusals in full is in that module's own tests.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import mechreg as mr
from mechreg.cli import main
from mechreg.schema import MechregError
from mechreg.store import read_norm_shard, read_token_shard

pytestmark = pytest.mark.usefixtures("without_pictures")

SHIP = "The old ship lay in the harbour and nobody knew when it would sail again. " * 3
WAVES = "Waves came and went; the captain counted them, as he had done for years. " * 3


class Case(NamedTuple):
    id: str
    make: Callable[[Any], Any]  # of a Ground: the command's words, or a call
    names: str  # what the message must name
    remedy: str  # a word of what it must say to do
    begun: bool = False
    notes: int = 0  # lines before the sentence that say which documents were left out


class Ground(NamedTuple):
    """A folder to be spoiled, and what makes models."""

    here: Path
    tiny: Path
    tokenizer: Any
    save_gpt2: Any
    save_llama: Any

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def run(self, extra="", *, models=("mini-s",), corpus="texts/*.txt", options=()) -> list[str]:
        """Write a spec and return the command that carries it out."""
        keys = f"models = {json.dumps(list(models))}\ncorpus = {json.dumps(corpus)}\n"
        self.write("spec.toml", keys + extra + "\n")
        return ["run", "spec.toml", *options]

    def corpus(self, name: str, data: str | bytes, extra="") -> list[str]:
        self.write(name, data)
        return self.run(extra, corpus=name)

    def model(self, **config) -> Path:
        """Return a copy of the small GPT-2, its config changed, to be spoiled further."""
        folder = self.here / "model"
        shutil.copytree(self.tiny, folder)
        if config:
            known = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(known | config))
        return folder

    def weights(self, change: Callable[[dict], None]) -> Path:
        folder = self.model()
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


# ------------------------------------------------------------------------------------------- how the input is made


class Harmful:
    """What it unpickles to is a command that has been run."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def pickled(g, content=None, *options):
    folder = g.model()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if content is None:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(content)
    return ["check", "./model", *options]


def remote_code(g):
    folder = g.model(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (folder / "own.py").write_text("open('ran', 'w')\n")
    return g.run(models=["model"])


def without_special_tokens(g):
    folder = g.model()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in settings.items() if not key.endswith("_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokens | {"added_tokens": []}))
    return g.run("prepend_bos = true", models=["model"])


def without_tokenizer(g):
    folder = g.model()
    for file in folder.glob("*token*"):
        file.unlink()
    return g.run(models=["model"])


def spoiled_file(g, file, data):
    (g.model() / file).write_bytes(data)
    return ["check", "./model"]


def other_vocabulary(g):
    """A tokenizer of more entries than the model has rows: a mini's."""
    folder = g.model()
    from mechreg import miniatures

    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(miniatures.folder("mini-s") / file, folder / file)
    return g.run(models=["model"])


def nan_weights(g):
    def spoil(state):
        state["transformer.h.1.attn.c_proj.bias"][3] = float("nan")

    g.weights(spoil)
    return g.run(models=["model"])


def silent_layer(g):
    def spoil(state):
        for part in ("weight", "bias"):
            state[f"transformer.h.1.attn.c_proj.{part}"].zero_()

    g.weights(spoil)
    return g.run(models=["model"])


def lacking_shard(g):
    folder = g.model()
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["check", "./model"]


def twins(g):
    for parent in ("x", "y"):
        shutil.copytree(g.tiny, g.here / parent / "twin")
    return g.run(models=["x/twin", "y/twin"])


def hooked_llama(g):
    shutil.copytree(g.save_llama(), g.here / "model")
    return g.run('backend = "hooked"', models=["model"])


def links(g, name, *words):
    (g.here / name).symlink_to(g.here / name)
    return list(words)


def loop_in_texts(g):
    (g.here / "texts/loop.txt").symlink_to(g.here / "texts/loop.txt")
    return g.run(corpus="texts/l*.txt")


def pipe(g, path, *words):
    os.mkfifo(g.here / path)
    return list(words) or g.run(corpus=path)


def parquet(g, cut=0, **columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    data = sink.getvalue()
    return g.corpus("texts/rows.parquet", data[: len(data) - cut])


def rows(*texts, **more):
    return "".join(json.dumps({"text": text} | more) + "\n" for text in texts)


def norms(**changes) -> pd.DataFrame:
    """A norm frame of one document of eight tokens and two layers."""
    frame = pd.DataFrame(
        {
            "model": "m",
            "hook": "attn_out",
            "layer": np.repeat([0, 1], 8),
            "depth": np.repeat([0.25, 0.75], 8),
            "doc": "d",
            "window": 0,
            "position": np.tile(np.arange(8), 2),
            "token_id": 5,
            "norm": np.random.default_rng(0).lognormal(size=16),
        }
    )
    return frame.assign(**{key: value(frame) for key, value in changes.items()})


def shard(g, kind):
    (path,) = (g.here / "runs/kept" / kind).rglob("*.parquet")
    return path


def cut_shard(g, kind):
    path = shard(g, kind)
    path.write_bytes(half(path.read_bytes()))
    return path


def sums(g, change):
    moments = mr.LagSums("log_norm ~ lag1 + position")
    moments.update(mr.add_lags(norms()))
    path = moments.save(g.here / "sums.npz")
    return g.write("sums.npz", change(path.read_bytes()))


def add_lags(**changes):
    return lambda: mr.add_lags(norms(**changes))


def tokens_of(**columns):
    return lambda: mr.tokenize(mr.load_model("mini-s"), pd.DataFrame(columns))


# ------------------------------------------------------------------------------------------------------ the table

COMMANDS = [
    Case("no spec given", lambda g: ["run"], "spec", "mechreg init"),
    Case("unknown command", lambda g: ["fly"], "'fly'", "--help"),
    Case("unknown option", lambda g: [*g.run(), "--bacth", "5"], "--bacth", "--help"),
    Case("no tokens in a batch", lambda g: [*g.run(), "--batch-tokens", "0"], "got 0", "1 or more"),
    Case("a word for a number", lambda g: [*g.run(), "--batch-tokens", "many"], "'many'", "a whole number, 1 or more"),
    Case("unknown device", lambda g: [*g.run(), "--device", "quantum"], "'quantum'", "try 'cpu'"),
    Case("device without numbers", lambda g: [*g.run(), "--device", "meta"], "'meta'", "use 'cpu'"),
    Case("device that is not here", lambda g: [*g.run(), "--device", "cuda:77"], "'cuda:77'", "try 'cpu'"),
    Case("out is a file", lambda g: [*g.run(), "--out", "spec.toml"], "'spec.toml'", "another --out"),
    Case("out below a file", lambda g: [*g.run(), "--out", "spec.toml/run"], "Not a directory", "another --out"),
    Case("out is a folder of other things", lambda g: [*g.run(), "--out", "texts"], "'texts'", "another --out"),
    Case("out is another run", lambda g: [*g.run("skip = 7"), "--out", "runs/kept"], "another spec", "another --out"),
    Case("out links to itself", lambda g: links(g, "loop", *g.run(), "--out", "loop"), "'loop'", "another --out"),
    Case("out too long a name", lambda g: [*g.run(), "--out", "a" * 300], "too long", "another --out"),
    Case("a text of broken UTF-8", lambda g: ["inspect", "mini-s", "--text", "a\udcff"], "undecodable", "in UTF-8"),
    Case("no name of a model", lambda g: ["inspect", ""], "is empty", "give a hub name"),
    Case("a very long name", lambda g: ["inspect", "a" * 5000], "5000 characters", "give a hub name"),
    Case("a web address", lambda g: ["inspect", "https://h.co/gpt2"], "h.co/gpt2", "hub name such as"),
    Case("a revision of a folder", lambda g: ["check", "mini-s", "--revision", "v2"], "only models on the hub have revisions", "leave out 'v2'"),
    Case("unknown engine", lambda g: [*g.run(), "--engine", "warp"], "'warp'", "'local', 'ray'"),
    Case("a word for the workers", lambda g: [*g.run(), "--workers", "many"], "'many'", "--help"),
    Case("no text", lambda g: ["inspect", "mini-s", "--text", " "], "--text", "give a text"),
    Case("a finding that nobody knows", lambda g: ["replicate", "lagged_norm"], "'lagged_norm'", "Did you mean 'lagged_norms'"),
    Case("a shell that nobody knows", lambda g: ["completion", "csh9"], "'csh9'", "--help"),
    Case("no draws", lambda g: ["compare", "runs/kept", "--draws", "0"], "draws", "0"),
    Case("a margin of NaN", lambda g: ["compare", "runs/kept", "--margin", "nan"], "margin", "nan"),
    Case("a term that no run has", lambda g: ["compare", "runs/kept", "--term", "lag9"], "'lag9'", "lag1"),
    Case("the page of a run into a folder", lambda g: ["report", "runs/kept", "--out", "texts"], "'texts'", "names a file"),
    Case("the page of a run into nothing", lambda g: ["report", "runs/kept", "--out", "/proc/a/b.html"], "/proc/a/b.html", "another --out"),
    Case("an intervention into nothing", lambda g: ["intervene", "mini-s", "--edit", "scale=0", "--out", "/proc/a/b.csv"], "/proc/a/b.csv", "another --out"),
    Case("an intervention into too long a name", lambda g: ["intervene", "mini-s", "--edit", "scale=0", "--out", "a" * 250 + ".csv"], "too long", "another --out"),
    Case("an intervention into a null character", lambda g: ["intervene", "mini-s", "--edit", "scale=0", "--out", "a\0b.csv"], "null character", "another --out"),
    Case("a comparison into a file", lambda g: ["compare", "runs/kept", "--out", "runs/kept/spec.toml"], "spec.toml", "another --out"),
    Case("differences into another kind of file", lambda g: ["diff", "runs/kept", "runs/kept", "--out", "moved.xlsx"], "'moved.xlsx'", ".csv or .parquet"),
    Case("differences into nothing", lambda g: ["diff", "runs/kept", "runs/kept", "--out", "/proc/a/b.csv"], "/proc/a/b.csv", "another --out"),
    Case("an edit that is none", lambda g: ["intervene", "mini-s", "--edit", "explode=2"], "explode", "scale"),
    Case("a dose of NaN", lambda g: ["intervene", "mini-s", "--edit", "scale=nan", "--layers", "0", "--documents", "1"], "nan", "finite"),
    Case("layers that count down", lambda g: ["intervene", "mini-s", "--edit", "scale=0", "--layers", "3-1"], "3-1", "--layers"),
    Case("more layers than memory holds", lambda g: ["intervene", "mini-s", "--edit", "scale=0", "--layers", "0-99999999999"], "99999999999", "--layers"),
    Case("line breaks in a name", lambda g: ["inspect", "a\nb\x1b[31m"], "a\\nb", "Check the name"),
]  # fmt: skip

SPECS = [
    Case("missing spec", lambda g: ["run", "nowhere.toml"], "'nowhere.toml'", "cannot be read"),
    Case("spec is a folder", lambda g: ["run", "texts"], "'texts'", "cannot be read"),
    Case("spec links to itself", lambda g: links(g, "l.toml", "run", "l.toml"), "'l.toml'", "cannot be read"),
    Case("spec is a pipe", lambda g: pipe(g, "p.toml", "run", "p.toml"), "'p.toml'", "give a TOML file"),
    Case("spec never ends", lambda g: ["run", "/dev/zero"], "'/dev/zero'", "give a TOML file"),
    Case("spec in Latin-1", lambda g: g.write("s.toml", b"name = 'K\xf6nig'") and ["run", "s.toml"], "'s.toml'", "as UTF-8"),
    Case("spec is not TOML", lambda g: g.run("lags ="), "not TOML", "line 3"),
    Case("spec of zero bytes", lambda g: g.write("s.toml", b"\0" * 99) and ["run", "s.toml"], "not TOML", "line 1"),
    Case("spec nested too deep", lambda g: g.run("lags = " + "[" * 9999), "not TOML", "recursion"),
    Case("unknown key", lambda g: g.run("hook = ['z']"), "'hook'", "Did you mean 'hooks'"),
    Case("key lacking", lambda g: g.write("s.toml", "corpus = 'demo'") and ["run", "s.toml"], "'models'", "is required"),
    Case("unknown hook", lambda g: g.run("hooks = ['attn']"), "'attn'", "Did you mean 'attn_out'"),
    Case("lag of zero", lambda g: g.run("lags = [0]"), "[0]", "1 or more"),
    Case("a word for a number in a spec", lambda g: g.run("skip = 'x'"), "'x'", "whole number"),
    Case("no models", lambda g: g.run(models=[]), "models", "at least one"),
    Case("name leads out", lambda g: g.run("name = '../../x'"), "'../../x'", "usable as a folder's name"),
    Case("name of dots", lambda g: g.run("name = '..'"), "'..'", "usable as a folder's name"),
    Case("name is absolute", lambda g: g.run("name = '/x'"), "'/x'", "usable as a folder's name"),
    Case("corpus outside is not there", lambda g: g.run(corpus="../../no-texts/*.txt"), "../../no-texts/*.txt", "give a file, a glob in quotes"),
    Case("formula runs a command", lambda g: g.run("formula = \"log_norm ~ __import__('os').system('touch ran')\""), "__import__", "add a column"),
    Case("formula opens a file", lambda g: g.run("formula = \"log_norm ~ open('ran', 'w')\""), "'open'", "or use one of"),
    Case("formula writes a file", lambda g: g.run("formula = \"log_norm ~ lag1 + np.save('ran', lag1)\""), "np.save", "add a column"),
    Case("formula writes a column", lambda g: g.run("formula = \"log_norm ~ lag1.to_pickle('ran')\""), "to_pickle", "add a column"),
    Case("formula calls a list", lambda g: g.run("formula = \"log_norm ~ [exec][0]('1')\""), "[exec][0]", "or use one of"),
    Case("formula hides a call", lambda g: g.run("formula = \"log_norm ~ I((lambda f: f('ran', 'w'))(open))\""), "lambda", "or use one of"),
    Case("formula asks for no such lag", lambda g: g.run("formula = 'log_norm ~ lag9'"), "'lag9'", "lags = [1, 2]"),
    Case("formula without outcome", lambda g: g.run("formula = 'lag1'"), "'lag1'", "write it like"),
    Case("more lags than tokens", lambda g: g.run("lags = [5000]\nformula = 'log_norm ~ lag5000'"), "needs windows of", "fewer lags", begun=True),
    Case("a lag beyond all numbers", lambda g: g.run(f"lags = [{10**30}]\nformula = 'log_norm ~ lag{10**30}'"), "needs windows of", "fewer lags", begun=True),
    Case("a number beyond all numbers", lambda g: g.run("skip = " + "9" * 5000), "not TOML", "digits"),
    Case("a number that is infinite", lambda g: g.run("skip = inf"), "inf", "whole number"),
    Case("one key twice", lambda g: g.run("models = ['mini-s']"), "not TOML", "line 3"),
    Case("a model twice", lambda g: g.run(models=["mini-s", "mini-s"]), "models", "distinct"),
    Case("a covariance that nobody knows", lambda g: g.run("cov = 'hc9'"), "'hc9'", "Did you mean"),
    Case("sums that no covariance has", lambda g: g.run("cov = 'hc3'\nkeep = 'moments'"), "'hc3'", "keep = 'norms'"),
    Case("everything skipped", lambda g: g.run(f"skip = {10**20}"), "needs windows of", "Give longer documents", begun=True),
]  # fmt: skip

MODELS = [
    Case("missing folder", lambda g: g.run(models=["./nowhere"]), "nowhere", "check the path"),
    Case("a file for a folder", lambda g: ["check", g.write("m.bin", "x").name], "'m.bin'", "needs the folder"),
    Case("an empty folder", lambda g: (g.here / "m").mkdir() or ["check", "./m"], "'m'", "save_pretrained"),
    Case("a folder that links to itself", lambda g: links(g, "m", "check", "./m"), "'m'", "check the path"),
    Case("a hub name, offline and not in the cache", lambda g: g.run(models=["gpt2-xl"]), "'gpt2-xl'", "unset that to download"),
    Case("no name a hub can have", lambda g: g.run(models=["a b"]), "'a b'", "Check the name"),
    Case("weights cut short", lambda g: spoiled_file(g, "model.safetensors", (g.tiny / "model.safetensors").read_bytes()[:5000]), "model", "download"),
    Case("weights with a lying header", lambda g: spoiled_file(g, "model.safetensors", b"\xff" * 7 + b"\x7f{}"), "model", "download"),
    Case("weights of no bytes", lambda g: spoiled_file(g, "model.safetensors", b""), "model", "download"),
    Case("weights gone", lambda g: (g.model() / "model.safetensors").unlink() or ["check", "./model"], "model.safetensors", "download"),
    Case("a shard lacking", lacking_shard, "model", "download"),
    Case("a tensor lacking", lambda g: g.weights(lambda s: s.pop("transformer.h.1.attn.c_proj.weight")) and ["check", "./model"], "h.1.attn.c_proj", "download"),
    Case("pickled weights", pickled, "pytorch_model.bin", "--allow-pickle"),
    Case("pickled weights in a run", lambda g: (pickled(g), g.run(models=["model"]))[1], "pytorch_model.bin", "allow_pickle = true"),
    Case("a pickle that runs a command", lambda g: pickled(g, pickle.dumps({"w": Harmful()}), "--allow-pickle"), "model", "download"),
    Case("remote code", remote_code, "model", "use a model of"),
    Case("reads both ways", lambda g: g.model(model_type="bert", architectures=["BertForMaskedLM"]) and ["check", "./model"], "BertForMaskedLM", "causal language models"),
    Case("config is not JSON", lambda g: spoiled_file(g, "config.json", b"{"), "model", "download"),
    Case("config is a list", lambda g: spoiled_file(g, "config.json", b"[1]"), "model", "download"),
    Case("config of broken UTF-8", lambda g: spoiled_file(g, "config.json", b"\xff\xfe"), "model", "download"),
    Case("config of an unknown type", lambda g: g.model(model_type="gpt9") and ["check", "./model"], "gpt9", "download"),
    Case("heads that do not divide d_model", lambda g: g.model(n_head=5) and ["check", "./model"], "model", "download"),
    Case("no layers", lambda g: g.model(n_layer=0) and ["check", "./model"], "0 layers", "from 1 to"),
    Case("more layers than memory", lambda g: g.model(n_layer=10**9) and g.run(models=["model"]), "1000000000 layers", "from 1 to"),
    Case("more vocabulary than memory", lambda g: g.model(vocab_size=10**13) and ["check", "./model"], "model", "download"),
    Case("tokenizer broken", lambda g: spoiled_file(g, "tokenizer.json", b"{}"), "model", "download"),
    Case("tokenizer of another model", other_vocabulary, "vocabulary", "own tokenizer", begun=True),
    Case("no tokenizer", without_tokenizer, "no tokenizer", "tokenizer=", begun=True),
    Case("no special tokens, and a BOS asked for", without_special_tokens, "BOS", "needs a tokenizer", begun=True),
    Case("context of one token", lambda g: context_of_one(g, ""), "needs windows of", "Give longer documents", begun=True),
    Case("context of one token, and it is the BOS", lambda g: context_of_one(g, "prepend_bos = true"), "prepend_bos", "at least 2", begun=True),
    Case("NaN activations", nan_weights, "layer 1", "check the weights", begun=True),
    Case("a layer that writes zeros", silent_layer, "layer 1", "Look at that text", begun=True),
    Case("two models of one name", twins, "'twin'", "rename"),
    Case("a backend that cannot hold it", hooked_llama, "llama", "backend='bridge'"),
]  # fmt: skip


def kept(g, place, change, *words):
    """Return a command, after a file of the finished run was changed: its bytes in, others or None for none out."""
    (path,) = (g.here / "runs/kept").glob(place)
    data = change(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return list(words)


def half(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 4]) + data[len(data) // 3 + 1 :]


def gone(data):
    return None


def record(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def linked(g, place, *words):
    path = g.here / "runs/kept" / place
    path.rename(g.here / "moved")
    path.symlink_to(path)
    return list(words)


SHARD, RECORD = "norms/mini-s/attn_out/*.parquet", "models/mini-s.json"
RUNS = [
    Case("out where nothing can be made", lambda g: [*g.run(), "--out", "/proc/a/run"], "'/proc/a/run'", "another --out"),
    Case("out of a null character", lambda g: [*g.run(), "--out", "a\0b"], "'a\\x00b'", "another --out"),
    Case("resume of nothing", lambda g: [*g.run(), "--resume"], "'runs/run'", "leave out --resume"),
    Case("resume below too long a name", lambda g: [*g.run(), "--resume", "--out", "a" * 300], "aaa", "leave out --resume"),
    Case("a shard cut short", lambda g: kept(g, SHARD, half, "compare", "runs/kept"), "norms-", "makes it again"),
    Case("a shard with a bit turned", lambda g: kept(g, SHARD, flipped, "compare", "runs/kept"), "norms-", "makes it again"),
    Case("a shard of no bytes", lambda g: kept(g, SHARD, lambda d: b"", "compare", "runs/kept"), "norms-", "makes it again"),
    Case("a shard that is gone", lambda g: kept(g, SHARD, gone, "compare", "runs/kept"), "is gone", "makes it again"),
    Case("shards that link to themselves", lambda g: linked(g, "norms", "compare", "runs/kept"), "is gone", "makes it again"),
    Case("a record cut short", lambda g: kept(g, RECORD, half, "compare", "runs/kept"), "mini-s.json", "remove it"),
    Case("a record that is gone", lambda g: kept(g, RECORD, gone, "compare", "runs/kept"), "'mini-s'", "makes it again"),
    Case("a record that leads out", lambda g: kept(g, RECORD, record(config_hash="/../../../x"), "compare", "runs/kept"), "config_hash", "remove it"),
    Case("a record of another model", lambda g: kept(g, RECORD, record(spec_name="x"), "compare", "runs/kept"), "'x'", "remove it"),
    Case("a record without what it needs", lambda g: kept(g, RECORD, record(config=5), "compare", "runs/kept"), "'config'", "remove it"),
    Case("a record that links to itself", lambda g: linked(g, RECORD, "compare", "runs/kept"), "mini-s.json", "give the same command again"),
    Case("a record of a milliard shards", lambda g: kept(g, RECORD, lambda d: d.replace(b'"shards": 1', b'"shards": 1000000000'), "compare", "runs/kept"), "1000000000 shards", "remove it"),
    Case("a manifest cut short", lambda g: kept(g, "_manifest.json", half, "compare", "runs/kept"), "_manifest.json", "remove it"),
    Case("provenance cut short", lambda g: kept(g, "provenance.json", half, "compare", "runs/kept"), "provenance.json", "makes it again"),
    Case("provenance that is a list", lambda g: kept(g, "provenance.json", lambda d: b"[]", "report", "runs/kept"), "provenance.json", "makes it again"),
    *(Case(f"{verb} of provenance {name}", lambda g, verb=verb, data=data, times=times: kept(g, "provenance.json", data, verb, *["runs/kept"] * times), "provenance.json", "makes it again")
      for verb, times in (("report", 1), ("compare", 1), ("diff", 2))
      for name, data in (("of nothing", lambda d: b"{}"), ("of other kinds", record(models=5)), ("of other models", record(models=["m"])))),
    *(Case(f"{verb} of {name} with a bit turned", lambda g, verb=verb, name=name: kept(g, name, flipped, verb, *["runs/kept"] * (1 + (verb == "diff"))), name, "makes it again")
      for verb in ("report", "diff") for name in ("coefficients.parquet", "statistics.csv")),
    Case("summaries that are no text", lambda g: kept(g, "summaries.txt", lambda d: b"\xff" + d, "report", "runs/kept"), "summaries.txt", "makes it again"),
    Case("coefficients cut short", lambda g: kept(g, "coefficients.parquet", half, "report", "runs/kept"), "coefficients.parquet", "makes it again"),
    Case("statistics of zero bytes", lambda g: kept(g, "statistics.csv", lambda d: b"", "report", "runs/kept"), "statistics.csv", "makes it again"),
    Case("a run's spec is cut short", lambda g: kept(g, "spec.toml", lambda d: d[: d.rindex(b"\n", 0, -1) + 1], "report", "runs/kept"), "spec.toml", "in its place"),
    Case("a run's spec is no spec", lambda g: kept(g, "spec.toml", lambda d: d + b"[", "report", "runs/kept"), "spec.toml", "in its place"),
    Case("a run to be compared is not there", lambda g: ["diff", "runs/kept", "runs/lost"], "'runs/lost'", "Run `mechreg run` first"),
    Case("tables to be compared are damaged", lambda g: kept(g, "coefficients.parquet", half, "diff", "runs/kept", "runs/kept"), "coefficients.parquet", "makes it again"),
    Case("a report of a folder of texts", lambda g: ["report", "texts"], "'texts'", "finished run"),
]  # fmt: skip


def context_of_one(g, extra):
    shutil.copytree(g.save_gpt2("short", n_positions=1), g.here / "model")
    return g.run(extra, models=["model"])


CORPORA = [
    Case("empty file", lambda g: g.corpus("e.txt", ""), "1 empty", "give it some"),
    Case("white space", lambda g: g.corpus("e.txt", " \n\t\u3000"), "1 whitespace", "give it some"),
    Case("broken UTF-8", lambda g: g.corpus("e.txt", b"caf\xe9"), "1 undecodable", "iconv -f latin1"),
    Case("UTF-16", lambda g: g.corpus("e.txt", SHIP.encode("utf-16")), "1 undecodable", "in UTF-8"),
    Case("no file", lambda g: g.run(corpus="*.csv"), "*.csv", "There is no file"),
    Case("a folder", lambda g: g.run(corpus="texts"), "texts", "give its files"),
    Case("a kind that is not read", lambda g: g.corpus("a.docx", "x"), "a.docx", ".jsonl"),
    Case("a folder of a file's name", lambda g: (g.here / "a.txt").mkdir() or g.run(corpus="a.txt"), "a.txt", "give its files"),
    Case("a corpus of a null character", lambda g: g.run(corpus="a\0.txt"), "a\\x00.txt", "There is no file"),
    Case("a corpus of too long a name", lambda g: g.run(corpus="a" * 5000), " ...", "There is no file"),
    Case("a link to itself", loop_in_texts, "loop.txt", "does not exist"),
    Case("a pipe", lambda g: pipe(g, "p.txt"), "p.txt", "pipe"),
    Case("a device that never ends", lambda g: (g.here / "z.txt").symlink_to("/dev/zero") or g.run(corpus="z.txt"), "z.txt", "device"),
    Case("two of one id, JSON lines", lambda g: g.corpus("a.jsonl", rows("a", "b", id=7)), "'7'", "Rename them"),
    Case("two of one id, CSV", lambda g: g.corpus("a.csv", "doc,text\nx,a b\nx,c d\n"), "'x'", "Rename them"),
    Case("a number for a text", lambda g: g.corpus("a.jsonl", rows(5)), "'a-0'", "must be a string"),
    Case("numbers for texts", lambda g: parquet(g, text=[1, 2]), "'rows-0'", "must be a string"),
    Case("lists for texts", lambda g: parquet(g, text=[["a"], ["b"]]), "'rows-0'", "must be a string"),
    Case("no column of texts", lambda g: g.corpus("a.csv", "txt\na b c\n"), "'text'", "Did you mean 'txt'"),
    Case("JSON cut short", lambda g: g.corpus("a.jsonl", rows("a") + '{"text": '), "line 2", "not JSON"),
    Case("JSON nested too deep", lambda g: g.corpus("a.jsonl", "[" * 10**5), "a.jsonl", "recursion"),
    Case("a quotation that does not end", lambda g: g.corpus("a.csv", 'text,n\n"a,1\n'), "a.csv", "quotation marks"),
    Case("CSV rows of other lengths", lambda g: g.corpus("a.csv", "text,n\na,1,2\n"), "a.csv", "Expected 2 columns"),
    Case("parquet cut short", lambda g: parquet(g, cut=9, text=["a b", "c d"]), "rows.parquet", "cannot be read"),
    Case("gzip cut short", lambda g: g.corpus("a.txt.gz", gzip.compress(SHIP.encode())[:-9]), "a.txt.gz", "ended before"),
    Case("no gzip", lambda g: g.corpus("a.txt.gz", SHIP), "a.txt.gz", "Not a gzipped file"),
    Case("CoNLL-U of nine columns", lambda g: g.corpus("a.conllu", "1\tA" + "\t_" * 7 + "\n\n"), "line 1", "ten columns"),
    Case("a document without a space", lambda g: g.corpus("a.txt", "a" * 5_000_001), "5,000,001 characters", "Split it", begun=True),
    Case("one token", lambda g: g.corpus("a.txt", "a"), "needs windows of", "Give longer documents", begun=True, notes=1),
    Case("five tokens", lambda g: g.corpus("a.txt", "a b c d e"), "at least 5", "give more text", begun=True),
    Case("an annotation that is never there", lambda g: g.corpus("a.jsonl", rows(SHIP, WAVES, y=None), "formula = 'log_norm ~ lag1 + y'"), "needs 'y'", "no document of the corpus has"),
    Case("an annotation of objects", lambda g: g.corpus("a.jsonl", rows(SHIP, WAVES, y={"a": 1}), "formula = 'log_norm ~ lag1 + y'"), "'y' holds dict", "numbers, texts or booleans"),
    Case("a data set, offline", lambda g: g.run(corpus="datasets:imdb"), "'imdb'", "Check the network"),
    Case("a data set of no name", lambda g: g.run(corpus="datasets:"), "datasets:", "datasets:NAME"),
]  # fmt: skip

CALLS = [
    Case("norms as words", lambda g: add_lags(norm=lambda f: "high"), "'norm'", "numbers"),
    Case("norms with NaN", lambda g: add_lags(norm=lambda f: f["norm"].where(f["position"] != 3)), "position 3", "Look at that text"),
    Case("negative norms", lambda g: add_lags(norm=lambda f: -f["norm"]), "layer 0", "Look at that text"),
    Case("positions as words", lambda g: add_lags(position=lambda f: f["position"].astype(str)), "'position'", "whole numbers"),
    Case("positions that jump", lambda g: add_lags(position=lambda f: f["position"] * 2), "from 0 to 2", "before you filter"),
    Case("layers as fractions", lambda g: lambda: mr.fit_lagged(mr.add_lags(norms()).assign(layer=0.5)), "'layer'", "whole numbers"),
    Case("a dictionary for a frame", lambda g: lambda: mr.fit_lagged(mr.add_lags(norms()).drop(columns="lag1")), "'lag1'", "add_lags"),
    Case("an intervention in a layer that is not there", lambda g: lambda: mr.intervene("mini-s", [SHIP], mr.Scale(0.5), layers=[99]), "99", "layers"),
    Case("a summary of a layer that is not there", lambda g: lambda: mr.fit_lagged(mr.add_lags(norms(), lags=(1,)), "log_norm ~ lag1").summary(layer=99), "99", "layer"),
    Case("token ids of another model", lambda g: tokens_of(doc=["d"], token_ids=[[1, 10**6]]), "1000000", "own tokenizer"),
    Case("token ids as fractions", lambda g: tokens_of(doc=["d"], token_ids=[[0.5, 1.5]]), "'d'", "whole numbers"),
    Case("two documents of one id", lambda g: tokens_of(doc=["d", "d"], token_ids=[[1], [2]]), "'d'", "Rename them"),
    Case("windows of no tokens", lambda g: lambda: mr.tokenize(mr.load_model("mini-s"), [SHIP], n_ctx=0), "n_ctx", "from 1 to"),
    Case("a run of no tokens in a batch", lambda g: lambda: mr.run_spec(mr.Spec(models=("mini-s",), corpus="demo"), batch_tokens=0), "batch_tokens", "1 or more"),
    Case("a run of no tokens in a shard", lambda g: lambda: mr.run_spec(mr.Spec(models=("mini-s",), corpus="demo"), shard_tokens=0), "shard_tokens", "1 or more"),
    Case("a run into a null character", lambda g: lambda: mr.run_spec(mr.Spec(models=("mini-s",), corpus="demo"), out="a\0b"), "'a\\x00b'", "another --out"),
    Case("a run into too long a name", lambda g: lambda: mr.run_spec(mr.Spec(models=("mini-s",), corpus="demo"), out="a" * 300), "too long", "another --out"),
    Case("a layer that no model has", lambda g: lambda: mr.open_run("runs/kept").norms(layers=[99]), "99", "one of 0, 1, 2, 3"),
    Case("a layer that no shard has", lambda g: lambda: read_norm_shard(shard(g, "norms"), layers=[99]), "[99]", "it has [0, 1, 2, 3]"),
    Case("a norm shard cut short", lambda g: partial(read_norm_shard, cut_shard(g, "norms")), "norms-", "makes it again"),
    Case("a token shard cut short", lambda g: partial(read_token_shard, cut_shard(g, "tokens")), "tokens-", "makes it again"),
    Case("a text for a shard", lambda g: lambda: read_norm_shard(g.here / "texts/a.txt"), "a.txt", "makes it again"),
    Case("a token shard for a norm shard", lambda g: lambda: read_norm_shard(shard(g, "tokens")), "tokens-", "another version"),
    Case("damaged tokens of a run", lambda g: cut_shard(g, "tokens") and mr.open_run("runs/kept").tokens, "tokens-", "makes it again"),
    Case("damaged coefficients of a run", lambda g: (kept(g, "coefficients.parquet", flipped), lambda: mr.open_run("runs/kept").coefficients)[1], "coefficients", "makes it again"),
    Case("sums cut short", lambda g: partial(mr.LagSums.load, sums(g, half)), "sums", "make it again"),
    Case("sums with a bit turned", lambda g: partial(mr.LagSums.load, sums(g, flipped)), "sums", "make it again"),
    Case("a file for a run", lambda g: lambda: mr.open_run("texts/a.txt"), "'texts/a.txt'", "Run `mechreg run` first"),
    Case("texts for a model", lambda g: lambda: mr.tokenize(5, [SHIP]), "int", "load_model"),
    Case("a number for a corpus", lambda g: lambda: mr.read_corpus(5), "int", "a list or dict of str"),
]  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the refusals


def snapshot(folder: Path) -> dict[str, str]:
    """Return every file below a folder with the hash of its bytes, a link with where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def said_in_one_sentence(message: str, case: Case) -> None:
    assert "Traceback" not in message
    assert message.count("\n") == 0
    assert message.isprintable()
    assert len(message) < 900
    assert message.endswith((".", "?", ")"))
    assert case.names in message
    assert case.remedy in message


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of the command line's."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text(SHIP)
    (folder / "texts/b.txt").write_text(WAVES)
    (folder / "spec.toml").write_text('models = ["mini-s"]\ncorpus = "texts/*.txt"\nname = "kept"\n')
    assert main(["run", str(folder / "spec.toml"), "--out", str(folder / "runs/kept")]) == 0
    (folder / "spec.toml").unlink()
    return folder


@pytest.fixture
def ground(finished, tmp_path, tiny, tokenizer, save_gpt2, save_llama, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(finished, here)
    monkeypatch.chdir(here)
    return Ground(here, tiny, tokenizer, save_gpt2, save_llama)


TABLE = [*COMMANDS, *SPECS, *MODELS, *CORPORA, *RUNS]


@pytest.mark.parametrize("case", TABLE, ids=[case.id for case in TABLE])
def test_a_command_is_refused_and_nothing_is_lost(case, ground, capfd):
    words = case.make(ground)
    before = snapshot(ground.here)
    capfd.readouterr()
    assert main(words) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    *notes, line = captured.err.removesuffix("\n").split("\n")
    assert all(said.startswith("mechreg: ") for said in [*notes, line])
    assert len(notes) == case.notes
    said_in_one_sentence(line, case)
    after = snapshot(ground.here)
    assert {name: after.get(name) for name in before} == before
    new = {name for name in after if name not in before}
    assert not new or case.begun
    assert all(name.startswith("runs/run/") for name in new)


@pytest.mark.parametrize("case", CALLS, ids=[case.id for case in CALLS])
def test_a_call_is_refused_and_nothing_is_lost(case, ground):
    call = case.make(ground)
    before = snapshot(ground.here)
    with pytest.raises(MechregError) as caught:
        call()
    said_in_one_sentence(str(caught.value), case)
    assert snapshot(ground.here) == before


def test_ids_are_distinct_and_there_are_enough_of_them():
    ids = [case.id for case in [*TABLE, *CALLS]]
    assert len(set(ids)) == len(ids) >= 190
