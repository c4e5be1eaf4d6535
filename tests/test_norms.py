"""Norms of every hook point against plain forward hooks of Hugging Face, and the ways in which a run must not go wrong.

Tolerances, relative: two exact ways of computing one float32 activation differ by 2.5e-7 to 5e-7 in its norm, the same
for a batch and for its rows one by one: 2e-6. Order, layout and repeats are exact.
"""

import gc
import os
import subprocess
import sys
import weakref

import einops
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechreg.models import HOOK_POINTS, hooked_transformer_class, load_model, load_reference, record_of
from mechreg.norms import extract_norms, head_norms, vector_norms, window_norms
from mechreg.norms import extraction as extraction_module
from mechreg.schema import NORM_COLUMNS, InputError, ModelError, NumericalError, SchemaError

pytestmark = pytest.mark.models

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "Hello there, world.",
    "A.",
    "The old man said: 'no, thank you', twice, and the cat looked at the moon and the mat.",
]
BLOCK_HOOKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
LENGTHS = [1, 2, 7, 7, 30, 64, 3, 12]


@pytest.fixture
def model(backend, tiny):
    return load_model(tiny, backend=backend)


def activations_of_a_gpt2(hf_model, ids):
    """Return every hook point of a Hugging Face GPT-2 at every layer, by hand: one document, no batch."""
    kept = {}
    handles = []
    n_heads = hf_model.config.n_head

    def keep(hook, layer, value):
        kept[hook, layer] = value[0].detach()

    for layer, block in enumerate(hf_model.transformer.h):
        for module, hook in ((block.attn, "attn_out"), (block.mlp, "mlp_out"), (block, "resid_post")):
            handles.append(
                module.register_forward_hook(
                    lambda m, a, out, hook=hook, layer=layer: keep(
                        hook, layer, out[0] if isinstance(out, tuple) else out
                    )
                )
            )
        for module, hook in ((block.ln_1, "resid_pre"), (block.ln_2, "resid_mid"), (block.attn.c_proj, "z")):
            handles.append(
                module.register_forward_pre_hook(lambda m, a, hook=hook, layer=layer: keep(hook, layer, a[0]))
            )
    with torch.no_grad():
        hf_model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(hf_model.transformer.h):
        z = einops.rearrange(kept["z", layer], "pos (head d_head) -> head pos d_head", head=n_heads)
        w_o = einops.rearrange(
            block.attn.c_proj.weight.detach(), "(head d_head) d_model -> head d_head d_model", head=n_heads
        )
        kept["z", layer], kept["result", layer] = z, z @ w_o
    return kept


def by_hand(hf_model, tokens):
    """Return what `window_norms` must give, document by document, in float64."""
    parts = {hook: [] for hook in HOOK_POINTS}
    for _, window in tokens.groupby(["doc", "window"], observed=True, sort=False):
        kept = activations_of_a_gpt2(hf_model, window["token_id"].tolist())
        for hook in HOOK_POINTS:
            layers = range(hf_model.config.n_layer)
            vectors = np.stack([kept[hook, layer].double().numpy() for layer in layers])
            parts[hook].append(np.linalg.norm(vectors, axis=-1))
    return {hook: np.concatenate(norms, axis=-1) for hook, norms in parts.items()}


@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_every_hook_point_equals_hugging_faces(model, make_windows, batch_tokens):
    tokens = make_windows(LENGTHS)
    norms = window_norms(model, tokens, hooks=tuple(HOOK_POINTS), batch_tokens=batch_tokens)
    expected = by_hand(load_reference(model), tokens)
    assert set(norms) == set(HOOK_POINTS)
    for hook, values in norms.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[hook], rtol=2e-6, atol=0, err_msg=hook)


@pytest.mark.parametrize("hook", HOOK_POINTS)
def test_one_hook_point_alone_has_all_its_blocks(model, make_windows, hook):
    tokens = make_windows([5, 9])
    (norms,) = window_norms(model, tokens, hooks=(hook,)).values()
    np.testing.assert_allclose(norms, by_hand(load_reference(model), tokens)[hook], rtol=2e-6, atol=0)


def test_float64_models_keep_their_digits(backend, tiny, make_windows):
    model, tokens = load_model(tiny, backend=backend, dtype="float64"), make_windows(LENGTHS)
    norms = window_norms(model, tokens, hooks=tuple(HOOK_POINTS))
    expected = by_hand(load_reference(model), tokens)
    for hook, values in norms.items():
        np.testing.assert_allclose(values, expected[hook], rtol=1e-12, atol=0, err_msg=hook)
    frame = extract_norms(model, tokens)
    assert frame["norm"].dtype == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_sums_in_float32(dtype):
    activation = torch.full((1, 1, 4096), 300.0, dtype=getattr(torch, dtype))  # its squares overflow float16
    assert float(vector_norms(activation)) == pytest.approx(300 * 64, rel=1e-6)
    assert float(head_norms(activation[:, :, None])) == pytest.approx(300 * 64, rel=1e-6)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_ragged_batches_equal_one_by_one_in_the_frames_order(
    model, make_windows, lengths, batch_tokens, seed
):
    tokens = make_windows(lengths, seed=seed)
    together = window_norms(model, tokens, hooks=("attn_out", "z"), batch_tokens=batch_tokens)
    alone = [
        window_norms(model, window, hooks=("attn_out", "z"))
        for _, window in tokens.groupby("doc", observed=True, sort=False)
    ]
    for hook, values in together.items():
        joined = np.concatenate([part[hook] for part in alone], axis=-1)
        np.testing.assert_allclose(values, joined, rtol=2e-6, atol=0)


def test_batches_keep_within_the_token_budget_and_run_like_with_like(model, make_windows, monkeypatch):
    shapes = []
    forward = type(model).forward

    def spy(self, tokens, *args, **kwargs):
        shapes.append(tuple(tokens.shape))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spy)
    window_norms(model, make_windows(LENGTHS), batch_tokens=64)
    assert shapes == [(1, 64), (2, 30), (5, 7)]


def test_the_frame_is_tidy(model):
    hooks = ("attn_out", "resid_post")
    frame = extract_norms(model, TEXTS, hooks=hooks)
    assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == NORM_COLUMNS
    n_tokens = [len(model.tokenizer.encode(text)) for text in TEXTS]
    assert len(frame) == sum(n_tokens) * 3 * len(hooks)
    assert frame.index.tolist() == list(range(len(frame)))
    first = frame[(frame["hook"] == "attn_out") & (frame["layer"] == 1)]
    assert first["doc"].tolist() == [f"text-{i}" for i, n in enumerate(n_tokens) for _ in range(n)]
    assert first["token_id"].tolist() == [i for text in TEXTS for i in model.tokenizer.encode(text)]
    assert first["position"].tolist() == [i for n in n_tokens for i in range(n)]
    assert frame.groupby("layer")["depth"].unique().explode().tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert frame["model"].unique().tolist() == ["tiny"]
    assert frame["hook"].unique().tolist() == list(hooks)


def test_heads_have_a_column(model):
    frame = extract_norms(model, TEXTS, hooks=("z", "attn_out", "result"))
    assert frame.columns.tolist() == [*list(NORM_COLUMNS)[:3], "head", *list(NORM_COLUMNS)[3:]]
    assert frame["head"].dtype == "int16"
    assert sorted(frame.loc[frame["hook"] == "z", "head"].unique()) == [0, 1, 2, 3]
    assert frame.loc[frame["hook"] == "attn_out", "head"].unique().tolist() == [-1]
    tokens = frame.loc[(frame["hook"] == "attn_out") & (frame["layer"] == 0)]
    values = window_norms(model, tokens, hooks=("result",))["result"]
    picked = frame[(frame["hook"] == "result") & (frame["layer"] == 2) & (frame["head"] == 3)]
    np.testing.assert_array_equal(picked["norm"], values[2, 3])
    assert "head" not in extract_norms(model, TEXTS)


def test_no_bos_unless_asked_and_then_one_a_window(model):
    plain, with_bos = (extract_norms(model, TEXTS, prepend_bos=asked) for asked in (False, True))
    assert (plain["token_id"] != 0).all()
    heads = with_bos[with_bos["position"] == 0]
    assert (heads["token_id"] == 0).all()
    assert (with_bos["token_id"] == 0).sum() == len(heads) == 4 * 3
    moved = with_bos[with_bos["position"] > 0]["norm"].to_numpy()
    assert np.max(np.abs(moved / plain["norm"].to_numpy() - 1)) > 1e-3


def test_long_documents_are_windows_that_know_nothing_of_each_other(model):
    text = " ".join(TEXTS * 5)
    frame = extract_norms(model, [text])
    assert frame["window"].nunique() > 2
    ids = model.tokenizer.encode(text)
    second = pd.DataFrame({"doc": ["b"], "token_ids": [ids[64:128]]})
    np.testing.assert_allclose(
        frame.loc[frame["window"] == 1, "norm"], extract_norms(model, second)["norm"], rtol=2e-6
    )


def test_the_model_is_left_as_it_was(model, make_windows):
    ids = torch.tensor([[5, 6, 7, 8]])
    heard = []
    model.add_hook("blocks.1.hook_attn_out", lambda value, hook: heard.append(1))
    before = model(ids)
    n_heard = len(heard)
    forwards = {name for name, module in model.named_modules() if "forward" in vars(module)}
    window_norms(model, make_windows(LENGTHS), hooks=tuple(HOOK_POINTS))
    assert len(heard) > n_heard  # a user's own hook stays, and runs
    assert torch.equal(model(ids), before)
    assert forwards == {name for name, module in model.named_modules() if "forward" in vars(module)}
    assert not model.cfg.use_attn_result
    model.reset_hooks()
    points = {id(point): point for point in model.hook_dict.values()}.values()
    assert sum(len(point.fwd_hooks) for point in points) == 0

    model.requires_grad_(True)
    loss = model(ids, return_type="loss")
    loss.backward()  # nothing of inference mode was left inside
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_an_error_leaves_no_hook_behind(model, make_windows):
    model.blocks[1].mlp.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        window_norms(model, make_windows([4]), hooks=("result", "resid_post"))
    points = {id(point): point for point in model.hook_dict.values()}.values()
    assert sum(len(point.fwd_hooks) for point in points) == 0
    assert not model.cfg.use_attn_result


@pytest.mark.parametrize("hook", ["attn_out", "mlp_out", "resid_post", "z"])
def test_no_logits_are_computed(model, make_windows, hook):
    ran = []
    model.unembed.register_forward_hook(lambda *args: ran.append(1))
    late = []
    model.blocks[2].mlp.register_forward_pre_hook(lambda *args: late.append(1))
    window_norms(model, make_windows(LENGTHS), hooks=(hook,), batch_tokens=64)
    assert ran == []
    # Nothing above the last hook wanted runs either, but in the first of three passes, which looks at the whole model.
    assert len(late) == (1 if hook in ("attn_out", "z") else 3)
    model(torch.tensor([[5, 6]]))
    assert ran == [1]  # the spy works


def test_vectors_are_reduced_within_the_hook(model, make_windows, monkeypatch):
    from mechreg.norms import reduction

    kept = []
    monkeypatch.setattr(
        reduction, "vector_norms", lambda value: kept.append(weakref.ref(value)) or vector_norms(value)
    )
    window_norms(model, make_windows([60] * 4))
    gc.collect()
    assert len(kept) == 3
    assert [reference() for reference in kept] == [None] * len(kept)


def test_a_hook_point_that_never_fires_is_an_error(model, make_windows):
    point = model.hook_dict["blocks.1.hook_attn_out"]
    point.__class__ = type("Dead", (type(point),), {"__call__": lambda self, value: value})
    with pytest.raises(ModelError, match=r"'blocks\.1\.hook_attn_out' fired not at all"):
        window_norms(model, make_windows([5]))


def test_attention_that_transformerlens_cannot_split_into_heads_is_an_error(model, make_windows, monkeypatch):
    def cannot(wanted):
        raise NotImplementedError("its attention is not split")

    monkeypatch.setattr(model, "set_use_attn_result", cannot)
    with pytest.raises(ModelError, match=r"has no hook 'result': its attention is not split"):
        window_norms(model, make_windows([5]), hooks=("result",))
    monkeypatch.undo()
    assert len(window_norms(model, make_windows([5]), hooks=("result",))["result"])


def test_a_block_that_runs_twice_is_an_error_even_after_the_last_hook(model, make_windows):
    point = model.hook_dict["blocks.2.hook_attn_out"]
    once = type(point).__call__
    point.__class__ = type("Twice", (type(point),), {"__call__": lambda self, x: once(self, once(self, x))})
    with pytest.raises(ModelError, match=r"'blocks\.2\.hook_attn_out' fired 2 times"):
        window_norms(model, make_windows([5]))


def test_a_model_that_changes_the_number_of_positions_is_an_error(model, make_windows, monkeypatch):
    forward = type(model).forward

    def with_bos(self, tokens, *args, **kwargs):
        tokens = torch.nn.functional.pad(tokens, (1, 0))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", with_bos)
    with pytest.raises(ModelError, match="gave 6 positions for 5 tokens"):
        window_norms(model, make_windows([5]))


def test_a_hook_point_that_is_not_there_is_an_error(make_neox, make_windows):
    model = load_model(make_neox(), name="parallel")  # attention and MLP side by side: nothing in between
    with pytest.raises(ModelError, match=r"parallel has no hook point 'blocks\.0\.hook_resid_mid' \(3 of 6"):
        window_norms(model, make_windows([5]), hooks=("attn_out", "resid_mid"))


def test_dropout_that_is_on_is_an_error(make_gpt2, make_windows):
    model = load_model(make_gpt2(), backend="bridge", name="trained-on")
    window_norms(model, make_windows([5]))
    model.train()
    with pytest.raises(
        ModelError, match=r"trained-on is in training mode, so that dropout .*call model\.eval\(\)"
    ):
        window_norms(model, make_windows([5]))


def test_a_model_that_reads_both_ways_is_an_error(hooked, make_windows):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "d_vocab": 320, "act_fn": "gelu"}
    model = HookedTransformer(
        HookedTransformerConfig(**sizes, attention_dir="bidirectional", model_name="both")
    )
    with pytest.raises(ModelError, match="both reads in both directions"):
        window_norms(model, make_windows([5]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("hook", ["attn_out", "z", "mlp_out"])
def test_an_activation_that_is_not_finite_is_placed(backend, make_gpt2, make_windows, hook, bad):
    original = make_gpt2()
    with torch.no_grad():
        original.transformer.h[1].attn.c_attn.bias[2 * 32 + 8 + 3] = bad  # a value bias of head 1
        original.transformer.wte.weight[319] *= 1.0
    model = load_model(original, backend=backend, name="broken")
    head = ", head 1" if hook == "z" else ""
    expected = (
        rf"model 'broken', hook '{hook}', layer 1{head}, document 'd1', window 0, position 0 is NaN or inf"
    )
    with pytest.raises(NumericalError, match=expected):
        window_norms(model, make_windows([4, 9, 2]), hooks=(hook,))


def test_one_bad_token_is_found_in_its_document(backend, make_gpt2, make_windows):
    original = make_gpt2(tie_word_embeddings=False)
    with torch.no_grad():
        original.transformer.wte.weight[319] = float("nan")
    model = load_model(original, backend=backend)
    tokens = make_windows([12, 30, 7], vocabulary=319)
    tokens.loc[12 + 17, "token_id"] = 319
    # Within the attention 0 x NaN is NaN, so that it reaches back in its document; the residual stream has the token.
    with pytest.raises(NumericalError, match="layer 0, document 'd1', window 0, position 17 is NaN"):
        window_norms(model, tokens, hooks=("resid_pre",), batch_tokens=500)
    with pytest.raises(NumericalError, match="layer 0, document 'd1', window 0, position"):
        window_norms(model, tokens, batch_tokens=500)


def test_several_models_are_loaded_and_freed_one_by_one(backend, save_gpt2, monkeypatch):
    folders = [save_gpt2("one"), save_gpt2("two", seed=1, n_layer=2), save_gpt2("three", seed=2)]
    loaded = []

    def load(entry):
        assert [reference() for reference in loaded] == [None] * len(loaded)
        model = load_model(entry, backend=backend)
        loaded.append(weakref.ref(model))
        return model

    with monkeypatch.context() as patch:
        patch.setattr(extraction_module, "load_model", load)
        together = extract_norms(folders, TEXTS, hooks=("attn_out", "mlp_out"))
    assert [reference() for reference in loaded] == [None] * 3
    assert together["model"].cat.categories.tolist() == ["one", "two", "three"]
    assert together["hook"].cat.categories.tolist() == ["attn_out", "mlp_out"]
    assert together["doc"].cat.categories.tolist() == [f"text-{i}" for i in range(4)]
    assert {column: str(dtype) for column, dtype in together.dtypes.items()} == NORM_COLUMNS
    for folder in folders:
        model = load_model(folder, backend=backend)
        alone = extract_norms(model, TEXTS, hooks=("attn_out", "mlp_out")).astype({"model": "str"})
        part = together[together["model"] == folder.name].reset_index(drop=True).astype({"model": "str"})
        pd.testing.assert_frame_equal(part, alone)


def test_many_documents_keep_their_order_and_categories(save_gpt2):
    docs = [f"text {i}" for i in range(12)]  # "text-10" sorts before "text-2"
    frame = extract_norms([save_gpt2("one"), save_gpt2("two")], docs)
    assert frame["doc"].cat.categories.tolist() == [f"text-{i}" for i in range(12)]


def test_two_models_of_one_name_are_refused_before_either_is_loaded(tiny, save_gpt2, monkeypatch):
    monkeypatch.setattr(extraction_module, "load_model", lambda entry: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"Two models are called 'tiny'.*load_model\(\.\.\., name=\)"):
        extract_norms([tiny, save_gpt2("tiny")], TEXTS)
    with pytest.raises(InputError, match="no model folder"):
        extract_norms([tiny, "./nowhere"], TEXTS)


def test_models_of_a_users_own_making_are_taken(tiny, hooked):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "d_vocab": 320, "act_fn": "gelu"}
    with torch.random.fork_rng():
        theirs = HookedTransformer(HookedTransformerConfig(**sizes, model_name="theirs", seed=3))
    theirs.cfg.default_prepend_bos = True
    ids = pd.DataFrame({"doc": ["a", "b"], "token_ids": [[5, 6, 7], [9, 8]]})
    frame = extract_norms([theirs, tiny], ids)
    assert frame["model"].unique().tolist() == ["theirs", "tiny"]
    _, cache = theirs.run_with_cache(torch.tensor([[5, 6, 7]]))
    expected = cache["blocks.1.hook_attn_out"][0].norm(dim=-1)
    found = frame.query("model == 'theirs' and layer == 1 and doc == 'a'")["norm"]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_a_tokenizer_that_pads_left_changes_nothing(model, make_windows):
    tokens = make_windows(LENGTHS)
    tokens.loc[tokens["position"] == 0, "token_id"] = 0  # BOS, which is GPT-2's padding too
    expected = window_norms(model, tokens)["attn_out"]
    model.tokenizer.padding_side = "left"
    np.testing.assert_array_equal(window_norms(model, tokens)["attn_out"], expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"hooks": ("attn_aut",)},
            "hooks must be one of 'resid_pre'.*got 'attn_aut'.*Did you mean 'attn_out'",
        ),
        ({"hooks": ()}, "hooks must name at least 1 of"),
        ({"hooks": ("z", "z")}, "each once"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number, 1 or more"),
        ({"documents": []}, "no usable text"),
        ({"models": []}, "at least one model"),
        ({"models": [3]}, "load_model needs a hub name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(tiny, monkeypatch, options, said):
    monkeypatch.setattr(extraction_module, "load_model", lambda entry: pytest.fail("loaded"))
    options = {"models": tiny, "documents": TEXTS} | options
    with pytest.raises(InputError, match=said):
        extract_norms(options.pop("models"), options.pop("documents"), **options)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda t: t.drop(columns="window"), SchemaError, "window_norms needs the column 'window'"),
        (lambda t: t[t["position"] > 0], InputError, "does not begin with position 0"),
        (lambda t: t.iloc[:0], InputError, "is empty"),
        (lambda t: t[t["position"] != 2], InputError, "document 'd0', window 0, position 3"),
        (
            lambda t: t.assign(doc=["a"] * 2 + ["b"] * (len(t) - 2)),
            InputError,
            "document 'b', window 0, position 2",
        ),
        (lambda t: t.assign(window=t["position"] // 4), InputError, "window 1, position 4"),
        (lambda t: t.assign(token_id=320), InputError, "the vocabulary of tiny has 320"),
        (lambda t: t.assign(token_id=-1), InputError, "run from -1"),
    ],
)
def test_token_frames_that_cannot_be_right_are_refused(model, make_windows, change, error, said):
    with pytest.raises(error, match=said):
        window_norms(model, change(make_windows([6, 5])))


def test_windows_that_do_not_fit_the_context_are_refused(model, make_windows):
    with pytest.raises(InputError, match="A window of 65 tokens does not fit the context of tiny, 64"):
        window_norms(model, make_windows([3, 65]))
    with pytest.raises(InputError, match="prepend_bos=True is for texts"):
        extract_norms(model, make_windows([3]), prepend_bos=True)


def test_the_frames_that_came_are_left_alone(model, make_windows):
    tokens = make_windows(LENGTHS)
    copy = tokens.copy(deep=True)
    extract_norms(model, tokens, hooks=("z",))
    pd.testing.assert_frame_equal(tokens, copy)


def test_nothing_is_printed_and_no_random_number_is_drawn(tiny, capfd):
    torch.manual_seed(3)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    extract_norms(tiny, TEXTS)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "tok" not in captured.err  # no progress bar where there is no terminal


def test_another_architecture_goes_the_same_way(save_llama, make_windows):
    model, tokens = load_model(save_llama()), make_windows(LENGTHS)
    assert record_of(model).backend == "bridge"
    together = window_norms(model, tokens, hooks=(*BLOCK_HOOKS, "z", "result"), batch_tokens=128)
    alone = [
        window_norms(model, window, hooks=tuple(together))
        for _, window in tokens.groupby("doc", observed=True, sort=False)
    ]
    for hook, values in together.items():
        joined = np.concatenate([part[hook] for part in alone], axis=-1)
        np.testing.assert_allclose(values, joined, rtol=2e-6, atol=0, err_msg=hook)


MEMORY = """
import sys
import numpy as np, pandas as pd
import mechreg as mr
from mechreg.norms import window_norms

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key + ":")).split()[1])

def windows(n):
    return pd.DataFrame({"doc": np.repeat(np.arange(n), 64), "window": 0, "position": np.tile(np.arange(64), n),
                         "token_id": np.arange(64 * n) % 300})

for backend in sys.argv[2:]:
    model = mr.load_model(sys.argv[1], backend=backend)
    window_norms(model, windows(64))
    peaks = []
    for n in (64, 640):
        open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
        window_norms(model, windows(n))
        peaks.append(status("VmHWM"))
    print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_documents(save_gpt2):
    # 576 more documents are 37 k tokens: 28 MB as vectors of d_model 192, .15 MB as norms, 1 MB as a token frame.
    folder = save_gpt2("wide", n_embd=192, n_layer=1)
    backends = ["bridge"] if hooked_transformer_class() is None else ["hooked", "bridge"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), *backends],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back at once
        capture_output=True,
        text=True,
        check=True,
    )
    for grown in done.stdout.split():
        assert int(grown) < 8e6


def test_the_classes_agree_with_each_other(hooked, tiny, make_windows):
    assert hooked_transformer_class() is not None
    tokens = make_windows(LENGTHS)
    ours = window_norms(load_model(tiny, backend="hooked"), tokens, hooks=tuple(HOOK_POINTS))
    theirs = window_norms(load_model(tiny, backend="bridge"), tokens, hooks=tuple(HOOK_POINTS))
    for hook, values in ours.items():
        np.testing.assert_allclose(values, theirs[hook], rtol=2e-6, atol=0, err_msg=hook)
