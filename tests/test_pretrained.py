"""A real pretrained model, SmolLM2-135M-Instruct (make test-pretrained): loaded, checked, and as the article says.

Real models have massive activations, and heads that cancel: two exact ways of computing one float32 norm differ
there by 1e-5, where they differ by 2e-6 with random weights.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mechreg as mr
from mechreg.models import record_of

pytestmark = pytest.mark.pretrained
PARAGRAPH = Path(__file__).parents[2] / "shared" / "data" / "seed" / "hungarian_rock.txt"


@pytest.fixture(scope="module")
def smollm2(pretrained):
    return mr.load_model(pretrained)


def test_it_is_what_hugging_face_computes(smollm2):
    record = record_of(smollm2)
    assert (record.name, record.backend, record.quantization) == ("SmolLM2-135M", "bridge", "Q4_1")
    assert record.verified < 1e-4
    table = mr.check_model(smollm2, hooks=("attn_out", "mlp_out", "resid_mid"))
    print(table.to_string())
    assert table["passed"].all()


def test_attn_out_is_what_plain_hooks_read(smollm2, pretrained):
    from transformers import AutoModelForCausalLM

    tokens = mr.tokenize(smollm2, mr.read_corpus("demo").head(2))
    ours = mr.extract_norms(smollm2, tokens)["norm"].to_numpy().reshape(-1, len(tokens))
    raw, heard = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval(), []
    for block in raw.model.layers:
        block.self_attn.register_forward_hook(lambda module, args, output: heard.append(output[0][0]))
    with torch.no_grad():
        for _, window in tokens.groupby("doc", observed=True, sort=False):
            raw(torch.tensor([window["token_id"].tolist()]))
    n_layers = len(raw.model.layers)
    theirs = np.concatenate(
        [
            [part.norm(dim=-1).numpy() for part in heard[i : i + n_layers]]
            for i in range(0, len(heard), n_layers)
        ],
        axis=1,
    )
    worst = np.abs(ours / theirs - 1)
    print(f"worst {worst.max():.1e}, 99% below {np.quantile(worst, 0.99):.1e}")
    assert worst.max() < 1e-4
    assert np.quantile(worst, 0.99) < 1e-5


@pytest.mark.skipif(not PARAGRAPH.exists(), reason="the article's paragraph is not beside the clone")
def test_the_articles_paragraph_shows_the_articles_finding(smollm2):
    norms = mr.extract_norms(smollm2, [PARAGRAPH.read_text().strip()])
    assert norms["position"].max() == 101
    lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
    table = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2", cov="nonrobust").coefficients
    counts = table[table["p_value"] < 0.05].groupby("term", observed=True).size()
    print(counts.to_string())
    assert counts["lag1"] == 23
    assert counts["lag2"] == 2


def test_the_gguf_file_loads_and_the_second_time_in_seconds(pretrained, smollm2, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (file,) = pretrained.parent.glob("*/*.gguf")
    times = []
    for _ in range(2):
        start = time.perf_counter()
        model = mr.load_model(file)
        times.append(time.perf_counter() - start)
    print(f"first {times[0]:.1f} s, second {times[1]:.1f} s")
    assert times[1] < times[0] / 2
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(ids), smollm2(ids))
    shutil.rmtree(tmp_path)
