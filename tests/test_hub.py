"""Hub names, against a stand-in for the hub: the real huggingface_hub client talks to a server on this machine."""

import hashlib
import http.server
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechreg.models import hooked_transformer_class

pytestmark = pytest.mark.models

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
# What is asked of the hub, in one process that knows nothing beforehand; the answers come back as JSON.
QUESTIONS = """
import json, os, threading
import pandas as pd
import mechreg as mr
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
        "v9": facts("gpt2", revision="v9"),
        "alias": facts("gpt2-small"),
        "miniature": facts("mini-x"),
        "listed": facts("EleutherAI/pythia-70m"),
        "listed, on the bridge": facts("pythia-70m", backend="bridge"),
        "unlisted": facts("someone/own-neox"),
        "unlisted, hooked": facts("someone/own-neox", backend="hooked"),
        "pickled": facts("someone/pickled", allow_pickle=True),
        "pickled, not allowed": facts("someone/pickled"),
        "pickled and safe": facts("someone/pickled-and-safe"),
        "harmful": facts("someone/harmful", allow_pickle=True),
        "ran": os.path.exists("ran-from-a-pickle"),
        "threads": [thread.name for thread in threading.enumerate() if "conversion" in thread.name],
    }
print(json.dumps(answers))
"""


class Harmful:
    """What it unpickles to is a command that has been run."""

    def __reduce__(self):
        return os.system, ("touch ran-from-a-pickle",)


@dataclass
class Hub:
    """Repositories as folders, one for each revision; every request is noted."""

    endpoint: str = ""
    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, folder: Path, revision: str = "main") -> None:
        self.repositories[name, revision] = folder
        self.repositories[name, COMMITS[revision]] = folder


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        self.hub.requests.append((self.command, self.path))
        names = {name for name, _ in self.hub.repositories}
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            path = path.removeprefix("api/models/")
            name = next((name for name in names if path == name or path.startswith(name + "/")), None)
            revision = path.partition("/revision/")[2] or "main"
            if name is None:
                return self.refuse(401, "RepoNotFound")
            if "/tree/" in path:
                return self.refuse(404, "EntryNotFound")
            folder = self.hub.repositories[name, revision]
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            commit = COMMITS.get(revision, revision)
            content = json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": files}).encode()
            return self.send(200, content, {"Content-Type": "application/json"}, body)
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in names:
            return self.refuse(401, "RepoNotFound")
        if (name, revision) not in self.hub.repositories:
            return self.refuse(404, "RevisionNotFound")
        place = self.hub.repositories[name, revision] / file
        commit = COMMITS.get(revision, revision)
        if not place.is_file():
            return self.refuse(404, "EntryNotFound", commit)
        content = place.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.send(200, content, {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, body)

    def refuse(self, status, code, commit=None):
        self.send(status, b"", {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {}), False)

    def send(self, status, content, headers, body):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def hub(save_gpt2, make_neox, tokenizer, tmp_path_factory):
    found = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": found})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
    yield found
    server.shutdown()
    server.server_close()


def ask(hub, home, **environment):
    """Return the answers of a fresh process, and what the hub was asked for by it."""
    asked = len(hub.requests)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSF"))
    }
    done = subprocess.run(
        [sys.executable, "-c", QUESTIONS],
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
    return ask(hub, home)


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


def test_the_short_names_of_transformer_lens_are_known(answers):
    assert answers["alias"] == answers["main"]


def test_a_second_start_needs_no_network(hub, online, home):
    answers, requests = ask(hub, home, HF_HUB_OFFLINE="1")
    assert requests == []
    assert answers["main"] == online[0]["main"]
    assert "'gpt3' is no folder" in answers["gpt3"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (
            "gpt3",
            r"^'gpt3' is no folder and no miniature.*Check the name and the network.*Did you mean 'gpt2'\?$",
        ),
        ("miniature", r"^'mini-x' is no folder and no miniature.*Did you mean 'mini-.'\?$"),
        ("v9", r"^'gpt2'.*v9"),
        ("harmful", r"^'someone/harmful'"),
    ],
)
def test_what_cannot_be_had_is_one_line(answers, question, said):
    assert re.search(said, answers[question])
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
