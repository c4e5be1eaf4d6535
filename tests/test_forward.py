"""The forward engine: a number depends on nothing but the model and the window it belongs to.

Tolerance: 1e-5 relative where shapes of products differ (a window alone and in a batch), none elsewhere. The models
are random and have two or three layers; a mistake of the kinds looked for moves norms by percents.
"""

import threading

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import mechreg as mr
from mechreg.check import check_model
from mechreg.forward import (
    Forward,
    Head,
    Window,
    batches,
    named_lengths,
    next_token,
    next_token_losses,
    padded,
)
from mechreg.forward.batches import PASS_TOKENS
from mechreg.interventions import Rotate, Scale, intervene, measuring, surprise_edits
from mechreg.norms import window_norms
from mechreg.schema import InputError, ModelError

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


KEPT = []


def bridge(config, *, verify=True, **options):
    """Return a bridge of a random model, its weights large enough that mistakes show."""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(config(**SIZES | options)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    KEPT.append(hf)  # what a check compares with
    hf.config.architectures = [type(hf).__name__]
    return mr.load_model(hf, backend="bridge", name=hf.config.model_type, verify=verify)


@pytest.fixture(scope="module")
def phi3():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 8.0, 16.0],
    }
    return bridge(
        transformers.Phi3Config, rope_scaling=rope, original_max_position_embeddings=64, sliding_window=None
    )


@pytest.fixture(scope="module")
def model(make_gpt2):
    return mr.load_model(make_gpt2(), name="tiny")


def test_a_window_in_a_batch_with_one_past_a_rope_threshold_keeps_its_own_frequencies(phi3, make_windows):
    tokens = make_windows([64, 65, 100, 7])
    together = window_norms(phi3, tokens)["attn_out"]
    for _, window in tokens.groupby("doc", observed=True):
        alone = window_norms(phi3, window)["attn_out"]
        np.testing.assert_allclose(together[:, window.index], alone, rtol=1e-5)


def test_effects_of_a_short_window_do_not_depend_on_a_long_one(phi3, make_windows):
    tokens = make_windows([20, 100])
    options = {"layers": 0, "measures": "loss", "progress": False, "max_offset": 0, "positions": "first"}
    both = intervene(phi3, tokens.assign(doc="same"), Scale(0.0), **options)
    parts = [
        intervene(phi3, part.reset_index(drop=True), Scale(0.0), **options)
        for _, part in tokens.groupby("doc")
    ]
    total = sum(part["estimate"].iloc[0] * part["n"].iloc[0] for part in parts)
    assert both["estimate"].iloc[0] * both["n"].iloc[0] == pytest.approx(total, rel=1e-4)


def test_check_stands_on_both_sides_of_every_length_that_the_config_names(phi3):
    assert named_lengths(phi3) == {"rope (longrope)": 64, "context": 128}
    table = check_model(phi3)
    assert table["passed"].all(), table
    assert table["detail"].iloc[-2] == "rope (longrope) 64, context 128"
    mistral = bridge(transformers.MistralConfig, sliding_window=9)
    assert named_lengths(mistral) == {"sliding window": 9, "context": 128}


def test_batches_are_the_cheapest_of_all_and_on_one_side(phi3):
    rng = np.random.default_rng(0)
    for _ in range(60):
        lengths, budget = (
            rng.integers(1, rng.integers(2, 120), rng.integers(1, 30)),
            int(rng.integers(1, 600)),
        )
        windows = [Window(i, int(length)) for i, length in enumerate(lengths)]
        got = list(batches(phi3, windows, budget))
        assert sorted(window.start for batch in got for window in batch) == list(range(len(windows)))
        found = 0
        for longer in (True, False):
            side = [batch for batch in got if (batch[0].length > 64) is longer]
            assert all((window.length > 64) is longer for batch in side for window in batch)
            ordered = sorted((int(n) for n in lengths if bool(n > 64) is longer), reverse=True)
            cost = [0]
            for end in range(1, len(ordered) + 1):
                fits = [b for b in range(end) if b == end - 1 or (end - b) * ordered[b] <= budget]
                cost.append(min(cost[b] + (end - b) * ordered[b] for b in fits) + PASS_TOKENS["cpu"])
            found += cost[-1] - sum(len(batch) * batch[0].length + PASS_TOKENS["cpu"] for batch in side)
        assert found == 0


def test_planning_is_nearly_linear_in_windows(model):
    windows = [Window(i, 2 + i % 28) for i in range(20_000)]
    began = threading.Event()
    timer = threading.Timer(20, began.set)  # a quadratic planner takes minutes
    timer.start()
    n = sum(1 for _ in batches(model, windows, 2**17))
    timer.cancel()
    assert n > 1
    assert not began.is_set()


@pytest.fixture(params=["autocast", "medium", "float64", "meta"])
def caller(request):
    """What a caller may have set; given back afterwards."""
    if request.param == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    elif request.param == "medium":
        torch.set_float32_matmul_precision("medium")
        yield
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")
    elif request.param == "float64":
        torch.set_default_dtype(torch.float64)
        yield
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)
    else:
        with torch.device("meta"):
            yield
            assert torch.get_default_device() == torch.device("meta")


@pytest.fixture(scope="module")
def plain(phi3, model, make_windows):
    """Norms and effects where the caller has set nothing."""
    tokens = make_windows([20, 9])
    options = {"layers": [0], "positions": 2, "progress": False}
    return [
        (
            one,
            tokens,
            options,
            window_norms(one, tokens, surprisal=True),
            intervene(one, tokens, Scale(0.5), **options),
        )
        for one in (model, phi3)
    ]


def test_numbers_do_not_depend_on_what_the_caller_set(plain, caller):
    seen = []

    def look(value):
        seen.append((value.dtype, torch.get_float32_matmul_precision()))

    for model, tokens, options, norms, effects in plain:
        for name, found in window_norms(model, tokens, surprisal=True).items():
            np.testing.assert_array_equal(found, norms[name])
        pd.testing.assert_frame_equal(intervene(model, tokens, Scale(0.5), **options), effects)
        with Forward(model, [("blocks.0.hook_attn_out", look)]) as run:
            run(padded(model, tokens, [Window(0, 9)])[0])
    assert seen == [(torch.float32, "highest")] * 2


def test_two_threads_share_a_model(model, make_windows):
    tokens = make_windows([30, 12, 5] * 4)
    alone = window_norms(model, tokens, hooks=("attn_out", "result"), batch_tokens=64)
    effects = intervene(model, tokens, Scale(0.0), progress=False)
    failed = []

    def norms():
        for _ in range(3):
            found = window_norms(model, tokens, hooks=("attn_out", "result"), batch_tokens=64)
            if any((found[hook] != values).any() for hook, values in alone.items()):
                failed.append("norms")

    def edits():
        if not intervene(model, tokens, Scale(0.0), progress=False).equals(effects):
            failed.append("effects")

    def caught(work):
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=caught, args=(work,)) for work in (norms, edits, norms)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert torch.get_float32_matmul_precision() == "highest"


def test_heads_add_up_to_attn_out_without_its_bias(model, make_windows):
    kept = {}
    acts = [("blocks.1.attn.hook_result", lambda value: kept.update(heads=value.sum(dim=2)))]
    acts += [("blocks.1.hook_attn_out", lambda value: kept.update(whole=value))]
    with Forward(model, acts) as run:
        run(padded(model, make_windows([9]), [Window(0, 9)])[0])
    bias = model.blocks[1].attn.b_O
    torch.testing.assert_close(kept["heads"], kept["whole"] - bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Gemma2", "Gemma3Text", "Olmo2", "Glm4", "Granite"])
def test_result_is_refused_where_something_follows_the_attention(name, make_windows):
    options = {"residual_multiplier": 0.3} if name == "Granite" else {}
    options |= {} if name in ("Olmo2", "Granite") else {"head_dim": 8}
    model = bridge(getattr(transformers, f"{name}Config"), **options)
    with pytest.raises(
        ModelError, match="'result' is not what each head adds; use the hooks 'z' or 'attn_out'"
    ):
        window_norms(model, make_windows([9]), hooks="result")
    assert window_norms(model, make_windows([9]), hooks="z")["z"].shape == (2, 4, 9)


@pytest.mark.parametrize(
    ("name", "options", "end"),
    [
        ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}, "unembed"),
        ("Granite", {"logits_scaling": 4.0}, "unembed"),
        ("Cohere", {"logit_scale": 0.5}, "unembed"),
        ("Llama", {}, "logits"),
    ],
)
def test_a_head_gives_the_models_own_logits(name, options, end, make_windows, monkeypatch):
    # The bridge's Cohere is not Hugging Face's, and loading it says so; its logits are still its own.
    model = bridge(getattr(transformers, f"{name}Config"), verify=name != "Cohere", **options)
    if end == "logits":  # a model that does to its logits what nobody foresaw
        forward = type(model).forward
        monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: 1.5 * forward(*args, **kwargs))
    tokens = make_windows([9])
    ids, _, real = padded(model, tokens, [Window(0, 9)])
    head, at = Head(model), torch.from_numpy(np.pad(real[:, 1:], ((0, 0), (0, 1))))
    assert head.end == end
    with Forward(model, end=head.end) as run, Forward(model, end="logits") as whole:
        losses = next_token_losses(run(ids), ids, at, head=head)
    with Forward(model, end="logits") as whole:
        np.testing.assert_allclose(losses, next_token_losses(whole(ids), ids, at), rtol=1e-5)
    if name != "Cohere":  # there norms are read through Hugging Face's own attention, which is another
        surprisal = window_norms(model, tokens, surprisal=True)["surprisal"]
        np.testing.assert_allclose(losses, surprisal[1:], rtol=1e-5)


def test_only_what_is_asked_for_is_computed_and_it_is_the_same(model, make_windows, monkeypatch):
    tokens = make_windows([20, 9, 13])
    options = {"positions": 2, "controls": "other_position", "layers": [0, 1], "progress": False}
    everything = intervene(model, tokens, Scale(0.5), **options)
    for chunk, kept in ((3 * 320, 2**26), (7 * 320, 0)):  # a few tokens at a time; clean logits computed anew
        monkeypatch.setattr(next_token, "CHUNK", chunk)
        monkeypatch.setattr(next_token, "KEPT", kept)
        pd.testing.assert_frame_equal(intervene(model, tokens, Scale(0.5), **options), everything, atol=1e-6)
    monkeypatch.undo()
    for name in ("loss", "kl", "top1", "norms"):
        with monkeypatch.context() as patch:
            if name != "kl":
                patch.setattr(next_token, "divergences", lambda *args: pytest.fail("computed"))
            if name not in ("loss",):
                patch.setattr(next_token, "_losses", lambda *args: pytest.fail("computed"))
            if name != "norms":
                patch.setattr(
                    "mechreg.interventions.passes.vector_norms", lambda *args: pytest.fail("computed")
                )
            found = intervene(model, tokens, Scale(0.5), measures=name, **options)
        wanted = everything[everything["measure"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, wanted)


def test_documents_counted_a_few_at_a_time_give_the_same_effects(model, make_windows, monkeypatch):
    tokens = make_windows([9, 5, 12, 7, 3, 8])
    options = {"positions": 2, "controls": ("other_layer", "other_position"), "progress": False}
    whole = intervene(model, tokens, [Scale(0.5), Rotate(30)], **options)
    monkeypatch.setattr(measuring, "TALLIES", 1)
    pd.testing.assert_frame_equal(
        intervene(model, tokens, [Scale(0.5), Rotate(30)], **options), whole, rtol=1e-4, atol=1e-6
    )


def test_one_of_a_kind_is_taken_where_several_are(model, make_windows):
    tokens, options = make_windows([9, 5]), {"progress": False, "positions": 2}
    several = intervene(
        model, tokens, [Scale(0.5)], layers=[0], measures=["loss"], controls=["other_position"], **options
    )
    one = intervene(
        model, tokens, Scale(0.5), layers=0, measures="loss", controls="other_position", **options
    )
    pd.testing.assert_frame_equal(one, several)
    norms = mr.extract_norms(model, tokens, covariates="distance", progress=False)
    assert "distance" in norms
    row = {"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0, "predicted": 1.0}
    frame = pd.DataFrame([row | {"position": i, "log_norm": 1.0 + i, "residual": 0.0 + i} for i in range(3)])
    assert [edit.dose for edit in surprise_edits(frame, k=np.float64(2))] == [2.0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda m, t: intervene(m, t, Scale(0.5), layers="0"),
            "layers must be a whole number from 0 to 2; got '0'",
        ),
        (
            lambda m, t: intervene(m, t, Scale(0.5), layers=1.0),
            "layers must be a whole number from 0 to 2; got 1.0",
        ),
        (lambda m, t: intervene(m, t, Scale(0.5), measures=1), "measures must be one of 'loss'"),
        (lambda m, t: intervene(m, t, Scale(0.5), controls=None), "controls must be one of"),
        (
            lambda m, t: intervene(m, t, 3),
            "needs Scale, Rotate, Project, Ablate, Patch or SetNorm, or a sequence of them; got int",
        ),
        (lambda m, t: intervene(m, t, None), "or a sequence of them; got NoneType"),
        (lambda m, t: intervene(m, t, Scale(0.5), hook=["attn_out"]), "hook must be one of"),
        (
            lambda m, t: intervene(m, t, Scale(0.5), max_offset=1.5),
            "max_offset must be a whole number, 0 or more",
        ),
        (
            lambda m, t: intervene(m, t, Scale(0.5), batch_tokens=None),
            "batch_tokens must be a whole number, 1 or more",
        ),
        (lambda m, t: window_norms(m, t, hooks=3), "hooks must be one of"),
        (
            lambda m, t: window_norms(m, t, batch_tokens=0.5),
            "batch_tokens must be a whole number, 1 or more; got 0.5",
        ),
        (lambda m, t: mr.extract_norms(m, t, covariates=None), "covariates must be one of"),
        (lambda m, t: mr.extract_norms(3, t), "got int"),
        (lambda m, t: mr.token_covariates(m, t, covariates=3), "covariates must be one of"),
        (lambda m, t: mr.replicate("layer_drop", models=3), "got int"),
        (
            lambda m, t: mr.replicate("layer_drop", models="mini-s", prepend_bos="no"),
            "prepend_bos must be True, False",
        ),
        (
            lambda m, t: mr.regression_vs_cause(m, t, per_window="a"),
            "per_window must be a whole number, 1 or more",
        ),
        (lambda m, t: mr.regression_vs_cause(m, t, own_lag=["none"]), "own_lag must be one of True, False"),
    ],
)
def test_a_wrong_kind_of_option_is_one_sentence(model, make_windows, call, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user's process has it
    with pytest.raises(InputError) as error:
        call(model, make_windows([9, 5]))
    assert said in str(error.value)
