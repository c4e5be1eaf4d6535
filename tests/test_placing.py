"""Models split by a device map, and autocast: as far as a machine without GPUs can show.

Tolerances: a device map moves weights and changes no number, so all on the CPU gives the same bits as no map.
Autocast to bfloat16 keeps 8 bits of every factor, a relative rounding of 2^-9 = .2% a product: with random weights of
three blocks the norms must be within 2% of float32's (.6% was seen) and must not be the same.
"""

import numpy as np
import pytest
import torch

import mechreg as mr
from mechreg.check import check_model
from mechreg.cli import main
from mechreg.models import input_device, placing, record_of
from mechreg.norms.reduction import window_norms
from mechreg.schema import InputError, ModelError
from mechreg.spec import write_spec

pytestmark = pytest.mark.usefixtures("without_pictures")

WHOLE = {"": "cpu"}
BY_MODULE = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.h": "cpu",
    "transformer.ln_f": "cpu",
}
BY_MODULE |= {"lm_head": "cpu"}


@pytest.mark.parametrize("device_map", ["cpu", WHOLE, BY_MODULE, "auto", "balanced"])
def test_a_device_map_changes_no_number(tiny, make_windows, device_map):
    windows = make_windows([5, 20, 64])
    plain = mr.load_model(str(tiny), backend="bridge")
    mapped = mr.load_model(str(tiny), device_map=device_map)
    record = record_of(mapped)
    if not torch.cuda.is_available():
        assert (record.backend, record.device, mapped.cfg.device) == ("bridge", "cpu", "cpu")
        assert input_device(mapped) == torch.device("cpu")
    assert record.device_map == device_map
    expected = window_norms(plain, windows)["attn_out"]
    np.testing.assert_array_equal(window_norms(mapped, windows)["attn_out"], expected)


def test_a_model_placed_by_a_map_is_checked_against_one_placed_the_same_way(tiny):
    assert check_model(mr.load_model(str(tiny), device_map=WHOLE))["passed"].all()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device_map": "auto", "backend": "hooked"}, ModelError, "use backend='bridge'"),
        ({"device_map": "auto", "device": "cpu"}, InputError, "give one"),
        ({"device_map": "auto", "processing": "folded"}, InputError, "processing='raw'"),
        (
            {"device_map": "evenly"},
            ModelError,
            "could not be loaded with device_map='evenly': .*balanced_low_0",
        ),
        ({"device_map": {}}, ModelError, "could not be loaded with device_map={}: .*a dict of module names"),
        ({"device_map": {"": True}}, ModelError, "could not be loaded with device_map="),
        ({"device_map": {"": "auto"}}, ModelError, "could not be loaded with device_map="),
        ({"device_map": {"transformer": "cpu", "lm_head": "disk"}}, ModelError, "are on cpu, disk, and"),
        ({"device_map": {"": "meta"}}, ModelError, "are on meta, and"),
        ({"device_map": {"": "cpu", "transfomer.h.0": "cpu"}}, ModelError, "has no such module; keys are"),
    ],
)
def test_what_cannot_be_split_is_refused(tiny, options, kind, message):
    with pytest.raises(kind, match=message):
        mr.load_model(str(tiny), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "device_map", ["cuda:0", {"": 0}, {"transformer": 0, "lm_head": "cpu"}, {"": "cuda:1"}]
)
def test_gpus_that_are_not_here_are_refused(device_map):
    with pytest.raises(ModelError, match=r"could not be loaded with device_map=.*that are here"):
        mr.load_model("mini-s", device_map=device_map)


@pytest.mark.parametrize(
    ("places", "parameters"),
    [
        ({"a": 0, "b": "cpu"}, "cuda"),
        ({"a": 0, "b": "disk"}, "cuda"),
        ({"a": 0}, "cpu"),
        ({"a": 0, "b": 1}, "meta"),
    ],
)
def test_a_split_that_did_not_fit_or_left_something_out_is_refused(places, parameters):
    """What transformers leaves on a model, without the GPUs that it takes to come about."""

    class Parameter:
        device = torch.device(parameters)

    class Placed(torch.nn.Module):
        hf_device_map = places

        def parameters(self):
            return [Parameter()]

    with pytest.raises(ModelError, match="weights of big are on"):
        placing.require_placed(Placed(), "big", "auto")
    Placed.hf_device_map, Parameter.device = {"a": 0, "b": 1}, torch.device("cuda", 1)
    placing.require_placed(Placed(), "big", "auto")


def test_without_accelerate_the_remedy_is_given(monkeypatch):
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda: False)
    with pytest.raises(ModelError, match="pip install accelerate"):
        mr.load_model("mini-s", device_map="auto")


def test_a_model_object_has_its_place(make_gpt2):
    with pytest.raises(InputError, match="names and folders"):
        mr.load_model(make_gpt2(), device_map="auto")


def test_a_run_hands_the_map_on_and_the_command_line_too(tiny, tmp_path, monkeypatch):
    asked = []

    def watched(name, **options):
        asked.append(options["device_map"])
        raise InputError("seen")

    monkeypatch.setattr("mechreg.run.shards.load_model", watched)
    file = tmp_path / "spec.toml"
    file.write_text(write_spec(mr.Spec(models=(str(tiny),), corpus="demo")))
    with pytest.raises(InputError, match="seen"):
        mr.run_spec(mr.read_spec(file), out=tmp_path / "run", device_map=WHOLE, progress=False)
    assert main(["run", str(file), "--out", str(tmp_path / "message"), "--device-map", "balanced"]) == 2
    assert asked == [WHOLE, "balanced"]


@pytest.mark.slow
def test_a_run_with_a_map_makes_the_tables_of_one_without(tiny, tmp_path):
    spec = mr.Spec(models=(str(tiny),), corpus="demo", backend="bridge")
    runs = [
        mr.run_spec(spec, out=tmp_path / str(device_map), device_map=device_map, progress=False)
        for device_map in (None, "cpu")
    ]
    plain, mapped = [(run / "coefficients.csv").read_bytes() for run in runs]
    assert plain == mapped


def test_autocast_is_only_there_when_asked_for_and_then_in_every_pass(tiny, make_windows, backend):
    windows = make_windows([64])
    plain, cast = (
        mr.load_model(str(tiny), backend=backend, dtype=d) for d in ("float32", "bfloat16-autocast")
    )
    exact, norms = (window_norms(model, windows)["attn_out"] for model in (plain, cast))
    assert next(iter(cast.parameters())).dtype == torch.float32
    assert norms.dtype == np.float32
    off = np.abs(norms / exact - 1)
    assert 1e-4 < off.max() < 2e-2
    assert record_of(cast).dtype == "bfloat16-autocast"
    # Whoever runs the model gets the same numbers, to bfloat16's rounding: a cache of patterns makes attention eager.
    # What runs beside it is left alone.
    ids = torch.tensor(windows["token_id"].to_numpy()[None])
    with torch.inference_mode():
        _, cache = cast.run_with_cache(ids)
    own = torch.stack([cache[f"blocks.{i}.hook_attn_out"][0].float().norm(dim=-1) for i in range(3)])
    np.testing.assert_allclose(own.numpy(), norms, rtol=2**-7)
    assert not torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(window_norms(plain, windows)["attn_out"], exact)


@pytest.mark.parametrize(
    "seed", [0, 3]
)  # with 3 a changed token moves norms by less than bfloat16's tolerance
def test_autocast_is_checked_against_float32(make_gpt2, tokenizer, seed):
    original = make_gpt2(seed)
    cast = mr.load_model(original, tokenizer=tokenizer, dtype="bfloat16-autocast")
    assert check_model(cast, reference=original)["passed"].all()
