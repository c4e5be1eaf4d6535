"""Hub names, against a stand-in for the hub: the real huggingface_hub client talks to a server on this machine."""

import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from stand_in import COMMITS, Fault, serving

from mechreg.models import hooked_transformer_class

pytestmark = pytest.mark.models

SPEC = 'models = ["faulty/begun"]\ncorpus = "begun.txt"\n'
# What goes wrong: the fault, and the file that it is of ("*": all); what the sentence must name, and its remedy.
FAULTS = {
    "unauthorised": (Fault(401), "*", "(401)", "`hf auth login`"),
    "private": (Fault(401, "RepoNotFound"), "*", "'faulty/private'", "Check the name"),
    "gated": (Fault(403, "GatedRepo"), "*", "(403)", "ask for access"),
    "forbidden": (Fault(403), "model.safetensors", "(403)", "ask for access"),
    "gone": (Fault(404, "RepoNotFound"), "*", "'faulty/gone'", "Check the name"),
    "no-config": (Fault(404, "EntryNotFound"), "config.json", "config.json", "Check the name"),
    "no-weights": (Fault(404, "EntryNotFound"), "model.safetensors", "model.safetensors", "Check the name"),
    "down": (Fault(500), "*", "500", "try again later"),
    "down-later": (Fault(500), "model.safetensors", "500", "try again later"),
    "busy": (Fault(429), "*", "429", "try again later"),
    "cut-config": (Fault(cut=40), "config.json", "complete message body", "resumes the download"),
    "cut-tokenizer": (Fault(cut=1500), "tokenizer.json", "complete message body", "resumes the download"),
    "cut-weights": (Fault(cut=5500), "model.safetensors", "complete message body", "resumes the download"),
    "begun": (Fault(cut=5500, times=6), "model.safetensors", "complete message body", "resumes the download"),
    "silent": (Fault(silent=True), "*", "disconnected", "Check the network"),
    "loop": (Fault(302), "*", "redirects", "Check the network"),
    "login-page": (Fault(body=b"<html>Log in to this network</html>"), "config.json", "JSON", "remove '"),
    "login-page-later": (Fault(body=b"<html>"), "model.safetensors", "header", "remove '"),
}  # fmt: skip
# These recover while they are asked.
BRIEF = {
    "busy-for-a-while": (Fault(503, times=3), "*"),
    "dropped": (Fault(cut=5500, times=1), "model.safetensors"),
    "dropped-often": (Fault(cut=5500, times=3), "model.safetensors"),
}
TIMES = {name: entry[0].times for name, entry in (FAULTS | BRIEF).items()}
COMMANDS = [f"inspect faulty/{name}" for name in [*FAULTS, *BRIEF] if name != "begun"]
COMMANDS += ["run begun.toml", "run --resume begun.toml"]
HALF_CACHED = ("down", "gone", "cut-config", "cut-weights")
OFFLINE = [f"inspect faulty/{name}" for name in (*BRIEF, *HALF_CACHED)]
# Hub names that TransformerLens lists, with settings that its HookedTransformer does not hold.
UNLIKE = [
    ("Qwen/Qwen2-0.5B", "Qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    ("Qwen/Qwen3-0.6B", "Qwen3", {"attention_bias": True}),
    ("microsoft/Phi-3-mini-4k-instruct", "Phi3", {"partial_rotary_factor": 0.5}),
]
# What is asked of the hub, in one process that knows nothing beforehand; the answers come back as JSON.
QUESTIONS = """
import contextlib, io, json, os, threading, time
import huggingface_hub.constants
import pandas as pd
import mechreg as mr
from mechreg.cli import main
from mechreg.models import record_of, tokenizer_hash, weight_hash

def facts(name, /, **options):
    try:
        model = mr.load_model(name, **options)
    except mr.ModelError as error:
        return str(error)
    record, checks = record_of(model), mr.check_model(model)
    return {"name": record.name, "commit": record.commit, "revision": record.revision, "class": type(model).__name__,
            "weights": weight_hash(model), "tokenizer": tokenizer_hash(model), "blocks": model.cfg.n_layers,
            "failed": checks.loc[~checks["passed"], "check"].tolist()}

answers = {"main": facts("gpt2"), "gpt3": facts("gpt3")}
if not os.environ.get("HF_HUB_OFFLINE"):
    bare = mr.load_model("someone/no-tokenizer")
    try:
        mr.extract_norms(bare, ["A text."])
    except mr.InputError as error:
        answers["text without tokenizer"] = str(error)
    ids = pd.DataFrame({"doc": ["a"], "token_ids": [[5, 6, 7]]})
    answers |= {
        "ids without tokenizer": len(mr.extract_norms(bare, ids)),
        "v2": facts("gpt2", revision="v2", name="second"),
        "gpt2@v2": facts("gpt2@v2"),
        "v9": facts("gpt2", revision="v9"),
        "alias": facts("gpt2-small"),
        "miniature": facts("mini-x"),
        "listed": facts("EleutherAI/pythia-70m"),
        "listed, on the bridge": facts("pythia-70m", backend="bridge"),
        "windows": facts("Qwen/Qwen2-0.5B"),
        "windows, on the bridge": facts("Qwen/Qwen2-0.5B", backend="bridge"),
        "biases": facts("Qwen/Qwen3-0.6B"),
        "part of the rotary": facts("microsoft/Phi-3-mini-4k-instruct"),
        "unlisted": facts("someone/own-neox"),
        "unlisted, hooked": facts("someone/own-neox", backend="hooked"),
        "pickled": facts("someone/pickled", allow_pickle=True),
        "pickled, not allowed": facts("someone/pickled"),
        "pickled and safe": facts("someone/pickled-and-safe"),
        "harmful": facts("someone/harmful", allow_pickle=True),
        "ran": os.path.exists("ran-from-a-pickle"),
        "threads": [thread.name for thread in threading.enumerate() if "conversion" in thread.name],
    }

wait = time.sleep
time.sleep = lambda seconds: wait(min(seconds, 0.005))  # the client waits seconds before it asks again
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000  # what of a file comes is kept by so many bytes

def command(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return [code, out.getvalue(), err.getvalue().splitlines()[-1:]]

answers["weights of one model"] = [
    weight_hash(mr.load_model("faulty/" + name)) for name in ("busy-for-a-while", "dropped", "dropped-often")
]
answers["commands"] = {words: command(*words.split()) for words in COMMANDS}
print(json.dumps(answers))
"""


class Harmful:
    """What it unpickles to is a command that has been run."""

    def __reduce__(self):
        return os.system, ("touch ran-from-a-pickle",)


@pytest.fixture(scope="module")
def hub(save_gpt2, make_neox, make_model, tokenizer, tmp_path_factory):
    with serving() as found:
        fill(found, save_gpt2, make_neox, tokenizer, tmp_path_factory)
        for name, family, settings in UNLIKE:
            folder = tmp_path_factory.mktemp(family)
            make_model(family, **settings).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            found.add(name, folder)
        yield found


def fill(found, save_gpt2, make_neox, tokenizer, tmp_path_factory):
    found.add("gpt2", save_gpt2("gpt2"))
    found.add("gpt2", save_gpt2("gpt2", seed=1, n_layer=2), "v2")
    found.add("someone/no-tokenizer", save_gpt2("no-tokenizer", with_tokenizer=False))
    neox = tmp_path_factory.mktemp("neox")
    make_neox().save_pretrained(neox)
    tokenizer.save_pretrained(neox)
    found.add("EleutherAI/pythia-70m", neox)
    found.add("someone/own-neox", neox)
    pickled, both, harmful = (save_gpt2(name) for name in ("pickled", "both", "harmful"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (both / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Harmful()}))
    (harmful / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Harmful()}))
    for folder in (pickled, harmful):
        (folder / "model.safetensors").unlink()
    found.add("someone/pickled", pickled)
    found.add("someone/pickled-and-safe", both)
    found.add("someone/harmful", harmful)
    faulty = save_gpt2("faulty")
    for name, (fault, file, *_) in (FAULTS | BRIEF).items():
        found.add(f"faulty/{name}", faulty)
        fault.times = TIMES[
            name
        ]  # it may have happened: a worker that takes up this file again sets it up again
        fault.ranges.clear()
        found.faults[f"faulty/{name}", file] = fault


def ask(hub, home, commands, **environment):
    """Return the answers of a fresh process, and what the hub was asked for by it."""
    asked = len(hub.requests)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSF"))
    }
    (home / "begun.toml").write_text(SPEC)
    (home / "begun.txt").write_text("The moon looked at the cat, and the cat sat still. " * 9)
    done = subprocess.run(
        [sys.executable, "-c", f"COMMANDS = {commands}\n{QUESTIONS}"],
        env=kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()  # nothing of the libraries' own on standard output
    return json.loads(line), hub.requests[asked:]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub, home):
    return ask(hub, home, COMMANDS)


@pytest.fixture(scope="module")
def answers(online):
    return online[0]


@pytest.fixture(scope="module")
def first_class():
    """The class that "auto" takes of a model that both can hold."""
    return "TransformerBridge" if hooked_transformer_class() is None else "HookedTransformer"


def test_a_hub_name_is_downloaded_and_its_commit_recorded(online, first_class):
    answers, requests = online
    main = answers["main"]
    assert ("GET", f"/gpt2/resolve/{COMMITS['main']}/model.safetensors") in requests
    assert main["failed"] == []
    assert (main["name"], main["class"], main["blocks"]) == ("gpt2", first_class, 3)
    assert (main["commit"], main["revision"]) == (COMMITS["main"], None)


def test_a_revision_is_honoured(answers):
    main, second = answers["main"], answers["v2"]
    assert second["failed"] == []
    assert (second["name"], second["blocks"]) == ("second", 2)
    assert (second["commit"], second["revision"]) == (COMMITS["v2"], "v2")
    assert second["weights"] != main["weights"]
    assert answers["gpt2@v2"] == second | {"name": "gpt2@v2"}


def test_the_short_names_of_transformer_lens_are_known(answers):
    assert answers["alias"] == answers["main"]


@pytest.fixture(scope="module")
def offline(hub, online, home):
    return ask(hub, home, OFFLINE, HF_HUB_OFFLINE="1")


def test_a_second_start_needs_no_network(online, offline):
    answers, requests = offline
    assert requests == []
    assert answers["main"] == online[0]["main"]
    assert "'gpt3' is no folder" in answers["gpt3"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            "gpt3",
            r"^'gpt3' is no folder and no miniature.*Check the name and the network.*Did you mean 'gpt2'\?$",
        ),
        ("miniature", r"^'mini-x' is no folder and no miniature.*Did you mean 'mini-.'\?$"),
        ("v9", r"^'gpt2' has no branch, tag or commit 'v9'"),
        ("harmful", r"^'someone/harmful'"),
    ],
)
def test_what_cannot_be_had_is_one_line(answers, question, message):
    assert re.search(message, answers[question])
    assert "\n" not in answers[question]


def test_a_repository_without_tokenizer_works_on_token_ids_alone(answers):
    assert "has no tokenizer" in answers["text without tokenizer"]
    assert answers["ids without tokenizer"] == 3 * 3


def test_another_architecture_by_a_name_that_transformer_lens_lists(answers, first_class):
    listed, bridge = answers["listed"], answers["listed, on the bridge"]
    assert listed["failed"] == bridge["failed"] == []
    assert (listed["class"], bridge["class"]) == (first_class, "TransformerBridge")
    assert listed["name"] == bridge["name"] == "EleutherAI/pythia-70m"
    assert listed["tokenizer"] == bridge["tokenizer"] is not None


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("windows", "has 2 blocks that look back only 32 tokens, which HookedTransformer does not represent"),
        ("biases", "HookedTransformer computes Qwen/Qwen3-0.6B differently"),
        ("part of the rotary", "HookedTransformer computes microsoft/Phi-3-mini-4k-instruct differently"),
    ],
)
def test_a_listed_name_that_hooked_computes_as_another_model_is_refused(
    answers, first_class, question, message
):
    assert answers["windows, on the bridge"]["failed"] == []
    if first_class == "HookedTransformer":
        assert message in answers[question]
        assert answers[question].endswith("se backend='bridge'.")
    else:
        assert answers[question]["failed"] == []


def test_another_architecture_by_a_name_that_it_does_not_list_takes_the_bridge(answers):
    assert answers["unlisted"]["class"] == "TransformerBridge"
    assert answers["unlisted"]["failed"] == []
    assert "use backend='bridge'" in answers["unlisted, hooked"]


def test_safetensors_come_before_pickles_and_no_pickle_runs_anything(online):
    answers, requests = online
    assert answers["pickled"]["failed"] == answers["pickled and safe"]["failed"] == []
    assert answers["pickled"]["weights"] == answers["pickled and safe"]["weights"]
    assert not any("pickled-and-safe" in path and path.endswith(".bin") for _, path in requests)
    assert "allow_pickle=True" in answers["pickled, not allowed"]
    assert isinstance(answers["harmful"], str)
    assert not answers["ran"]


def test_the_hub_is_not_asked_to_convert_a_repository(online):
    answers, requests = online
    assert answers["threads"] == []
    assert not any("discussions" in path or "spaces" in path for _, path in requests)


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "begun"])
def test_a_hub_that_fails_is_one_sentence_with_the_remedy(answers, name):
    _, _, names, remedy = FAULTS[name]
    code, out, (message,) = answers["commands"][f"inspect faulty/{name}"]
    assert (code, out) == (2, "")
    refused(message, names, remedy)


@pytest.mark.parametrize("name", BRIEF)
def test_a_hub_that_fails_for_a_while_is_asked_again(answers, name):
    code, out, _ = answers["commands"][f"inspect faulty/{name}"]
    assert code == 0
    assert f"faulty/{name}" in out


def test_a_broken_download_goes_on_where_it_broke(answers):
    # Of 5,500 bytes that came, five whole chunks of 1,000 are kept and not asked for again.
    assert BRIEF["dropped-often"][0].ranges == [None, "bytes=5000-", "bytes=5000-"]
    assert FAULTS["cut-weights"][0].ranges[:2] == [None, "bytes=5000-"]
    assert len(set(answers["weights of one model"])) == 1


def test_a_run_whose_download_broke_goes_on_with_the_same_command(answers, home):
    code, out, (message,) = answers["commands"]["run begun.toml"]
    assert (code, out) == (2, "")
    refused(message, *FAULTS["begun"][2:])
    code, out, _ = answers["commands"]["run --resume begun.toml"]
    assert code == 0
    assert "Report:" in out
    assert (home / "runs/run/_manifest.json").is_file()


def test_without_the_network_the_cache_is_enough_and_half_of_it_is_refused(offline):
    answers, requests = offline
    assert requests == []
    commands = answers["commands"]
    for name in BRIEF:
        code, out, _ = commands[f"inspect faulty/{name}"]
        assert (code, f"faulty/{name}" in out) == (0, True)
    for name in HALF_CACHED:
        code, out, (message,) = commands[f"inspect faulty/{name}"]
        assert (code, out) == (2, "")
        refused(message, f"'faulty/{name}'", "unset that")


def refused(message, names, remedy):
    assert message.startswith("mechreg: ")
    assert message.endswith((".", "?"))
    assert "Traceback" not in message
    assert len(message) < 600
    assert names in message
    assert remedy in message
