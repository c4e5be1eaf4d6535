"""Specs read from TOML: what is right comes back as it was written, what is wrong is refused in one sentence.

No tolerances. Files are written here by hand or by hypothesis, never by the function that is tested, except where
what it writes is read back.
"""

import json
import pickle
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg import schema
from mechreg.schema import InputError
from mechreg.spec import Spec, parse_spec, read_spec, write_spec

quick = settings(max_examples=100, deadline=None)
SMALL = 'models = ["mini-s"]\ncorpus = "demo"\n'


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_example_of_the_design(tmp_path):
    text = """
        name = "gpt2-sizes"
        models = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]   # hub names, folders, miniatures
        corpus = "texts/*.txt"                   # anything read_corpus takes
        hooks = ["attn_out"]
        lags = [1, 2]
        skip = 1
        formula = "log_norm ~ lag1 + lag2"
        cov = "auto"
        backend = "auto"                         # hooked | bridge
        processing = "raw"                       # folded
        dtype = "float32"
        prepend_bos = false
    """
    spec = read_spec(write(tmp_path / "spec.toml", text))
    assert asdict(spec) == {
        "models": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
        "corpus": str(tmp_path / "texts/*.txt"),
        "name": "gpt2-sizes",
        "hooks": ("attn_out",),
        "measures": ("norm",),
        "lags": (1, 2),
        "skip": 1,
        "drop_sinks": (),
        "formula": "log_norm ~ lag1 + lag2",
        "effects": (),
        "cov": "auto",
        "backend": "auto",
        "processing": "raw",
        "dtype": "float32",
        "prepend_bos": False,
        "tagger": "none",
        "allow_pickle": False,
        "top_tokens": 0,
        "nulls": (),
        "keep": "norms",
    }
    # Every key but models, corpus and the name has that default.
    defaults = read_spec(write(tmp_path / "small.toml", SMALL))
    assert replace(spec, name="run", models=("mini-s",), corpus="demo") == defaults


def test_a_byte_order_mark_is_taken_off(tmp_path):
    assert read_spec(write(tmp_path / "spec.toml", b"\xef\xbb\xbf" + SMALL.encode())).corpus == "demo"


@pytest.mark.parametrize(
    "given",
    [
        {"models": ["mini-s"], "hooks": ["attn_out"], "lags": [1, 2]},
        {"models": "mini-s", "hooks": "attn_out", "lags": range(1, 3)},
        {"models": Path("mini-s"), "corpus": Path("demo"), "lags": (np.int64(1), 2), "skip": np.int32(1)},
    ],
)
def test_one_entry_a_list_and_paths_are_the_same_spec(given):
    expected = Spec(models=("mini-s",), corpus="demo")
    spec = Spec(**({"corpus": "demo"} | given))
    assert spec == expected
    assert spec.digest() == expected.digest()


def test_one_entry_in_a_file(tmp_path):
    text = 'models = "mini-s"\ncorpus = "demo"\nlags = 2\n'
    assert read_spec(write(tmp_path / "spec.toml", text)).lags == (2,)


def test_a_spec_is_frozen():
    with pytest.raises(AttributeError):
        Spec(models=("mini-s",), corpus="demo").skip = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("demo", "demo"),
        ("datasets:imdb", "datasets:imdb"),
        ("texts/*.txt", "{folder}/texts/*.txt"),
        ("../texts/a.txt", "{folder}/../texts/a.txt"),
        ("/texts/a.txt", "/texts/a.txt"),
        ("~/a.txt", "{home}/a.txt"),
        ("~nobody-of-this-name/a.txt", "{folder}/~nobody-of-this-name/a.txt"),
    ],
)
def test_the_corpus_is_relative_to_the_spec(given, expected, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "specs").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "specs/spec.toml", f'models = ["mini-s"]\ncorpus = "{given}"\n')
    spec = read_spec("specs/spec.toml")
    assert spec.corpus == expected.format(folder=tmp_path / "specs", home=tmp_path / "home")


def test_the_folder_of_the_spec_is_no_glob(tmp_path):
    from mechreg.corpus import read_corpus

    folder = tmp_path / "run[1]"
    (folder / "texts").mkdir(parents=True)
    write(folder / "texts/a.txt", "A.")
    spec = read_spec(write(folder / "spec.toml", 'models = ["mini-s"]\ncorpus = "texts/*.txt"\n'))
    assert read_corpus(spec.corpus)["doc"].tolist() == ["a"]


def test_models_are_folders_beside_the_spec_or_names(tmp_path):
    (tmp_path / "mine").mkdir()
    text = 'models = ["gpt2", "mine", "./absent", "EleutherAI/pythia-70m", "/abs"]\ncorpus = "demo"\n'
    spec = read_spec(write(tmp_path / "spec.toml", text))
    assert spec.models == (
        "gpt2",
        f"{tmp_path}/mine",
        f"{tmp_path}/./absent",
        "EleutherAI/pythia-70m",
        "/abs",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ['a']\n" + SMALL, r"There is no key 'model'; keys are models, corpus, name,.*mean 'models'"),
        ("[report]\n" + SMALL, "There is no key 'report'"),
        ('corpus = "demo"', "The key 'models' is required"),
        ('models = ["a"]', "The key 'corpus' is required"),
        ("", "The key 'models' is required"),
        ('models = 3\ncorpus = "demo"', "every entry of models must be a string; got 3"),
        ('models = {a = 1}\ncorpus = "demo"', r"models must be a list of at least one entry; got \{'a': 1\}"),
        ('models = []\ncorpus = "demo"', r"models must be a list of at least one entry; got \[\]"),
        ('models = [1]\ncorpus = "demo"', "every entry of models must be a string; got 1"),
        ('models = [["a"]]\ncorpus = "demo"', r"every entry of models must be a string; got \['a'\]"),
        ('models = ["a", "a"]\ncorpus = "demo"', r"models must be distinct; got \['a', 'a'\]"),
        ('models = [""]\ncorpus = "demo"', "every entry of models must not be empty"),
        ('models = ["a"]\ncorpus = ""', "corpus must not be empty"),
        ('models = ["a"]\ncorpus = ["a"]', r"corpus must be a string; got \['a'\]"),
        (SMALL + "hooks = ['attn']", r"every entry of hooks must be one of 'resid_pre', .*got 'attn'"),
        (SMALL + "hooks = ['mlpout']", "Did you mean 'mlp_out'"),
        (SMALL + "hooks = ['z', 'z']", "hooks must be distinct"),
        (SMALL + "lags = 2.0", r"lags must be a list of at least one entry; got 2\.0"),
        (SMALL + "lags = []", "lags must be a list of at least one entry"),
        (SMALL + "lags = [0, 1]", r"lags must be 1 or more \(1 is the token before\); got \[0, 1\]"),
        (SMALL + "lags = [1, 1]", "lags must be distinct"),
        (SMALL + "lags = [true]", "every entry of lags must be a whole number; got True"),
        (SMALL + "lags = [1.0]", r"every entry of lags must be a whole number; got 1\.0"),
        (SMALL + "skip = -1", "skip must be 0 or more; got -1"),
        (SMALL + "skip = true", "skip must be a whole number; got True"),
        (SMALL + "skip = 1.0", r"skip must be a whole number; got 1\.0"),
        (SMALL + "skip = 2026-11-24", "skip must be a whole number"),
        (SMALL + "seed = 0", "There is no key 'seed'"),
        (SMALL + "prepend_bos = 0", "prepend_bos must be true or false; got 0"),
        (SMALL + "formula = ''", "formula must not be empty"),
        (SMALL + "effects = ['pos']", "every entry of effects must be one of|effects must be one of 'doc'|got 'pos'"),
        (SMALL + "effects = ['doc', 'doc']", "effects must be distinct"),
        (SMALL + "cov = 'cluster3'", "cov must be one of 'auto', 'nonrobust', 'hc0', .*got 'cluster3'"),
        (SMALL + "cov = {}", r"cov must be one of .*got \{\}"),
        (SMALL + "backend = 'bridged'", "backend must be one of 'auto', 'hooked', 'bridge'; .* mean 'bridge'"),
        (SMALL + "processing = 'fold'", "processing must be one of 'raw', 'folded'"),
        (SMALL + "dtype = 'float'", "dtype must be one of 'float32', 'float64', 'bfloat16', 'float16'"),
        (SMALL + "name = 'a/b'", "name must be usable as a folder's name.*got 'a/b'"),
        (SMALL + "name = '..'", "name must be usable as a folder's name"),
        (SMALL + "name = '.hidden'", "name must be usable as a folder's name"),
        (SMALL + 'name = "a\\nb"', "name must be usable as a folder's name"),
        (SMALL + 'name = "a\\n"', "name must be usable as a folder's name"),
        (SMALL + f"name = '{'a' * 61}'", "at most 60"),
        (SMALL + "skip\n", "is not TOML: .*line 3"),
        (SMALL + SMALL, "is not TOML: Cannot overwrite a value"),
        ("a = " + "[" * 9999, "is not TOML: maximum recursion"),
        ("a = " + "1" * 9999, "is not TOML: Exceeds the limit"),
        (b"\xff\xfe", "is not UTF-8 text; save it as UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_in_one_sentence(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        read_spec(write(tmp_path / "spec.toml", text))
    assert str(refused.value).startswith(f"The spec '{tmp_path / 'spec.toml'}'")
    assert "\n" not in str(refused.value)


def test_a_spec_that_is_not_there_is_refused(tmp_path):
    for path, message in [
        (tmp_path / "none.toml", r"The spec '.*none\.toml' cannot be read: No such file or directory\."),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / ("a" * 300), "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null byte"),
    ]:
        with pytest.raises(InputError, match=message):
            read_spec(path)


def test_python_is_refused_like_toml():
    for options, message in [
        ({"lags": (0,)}, "1 or more"),
        ({"skip": -1}, "0 or more"),
        ({"name": "a/b"}, "folder"),
        ({"lags": [1.0]}, "every entry of lags must be a whole number"),
        ({"lags": True}, "lags must be a list"),
        ({"skip": None}, "skip must be a whole number"),
        ({"corpus": ["a"]}, "corpus must be a string"),
        ({"corpus": b"a"}, "corpus must be a string"),
        ({"models": None}, "models must be a list"),
        ({"hooks": {"attn_out": 1}}, "hooks must be a list"),
        ({"cov": None}, "cov must be one of"),
        ({"prepend_bos": 1}, "prepend_bos must be true or false"),
    ]:
        with pytest.raises(InputError, match=message):
            Spec(**({"models": ("mini-s",), "corpus": "demo"} | options))


def test_the_options_of_a_spec_are_those_of_the_modules_that_carry_them_out():
    models = pytest.importorskip("mechreg.models")
    assert set(get_args(schema.Hook)) == set(models.HOOK_POINTS)
    kinds = {field.name: field.type for field in fields(Spec)}
    assert kinds["hooks"] == tuple[schema.Hook, ...]
    for key in ("backend", "processing", "dtype", "cov"):
        assert kinds[key] is getattr(schema, key.capitalize())
        for option in get_args(kinds[key]):
            assert getattr(Spec(models=("m",), corpus="demo", **{key: option}), key) == option


# ---------------------------------------------------------------------------------------------------- any values


def some(kind):
    return st.lists(kind, min_size=1, max_size=4, unique=True).map(tuple)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
specs = st.fixed_dictionaries(
    {
        "models": some(texts.map(lambda name: f"/{name}")),
        "corpus": texts.map(lambda path: f"/{path}")
        | st.just("demo")
        | texts.map(lambda name: f"datasets:{name}"),
        "name": st.from_regex(r"\w[\w .+-]{0,59}", fullmatch=True),
        "hooks": some(st.sampled_from(get_args(schema.Hook))),
        "lags": some(st.integers(1, 10**20)),
        "skip": st.integers(0, 10**20),
        "formula": texts.map(lambda name: f"log_norm ~ lag1 + Q({f'a {name}'!r})"),
        "cov": st.sampled_from(get_args(schema.Cov)),
        "backend": st.sampled_from(get_args(schema.Backend)),
        "processing": st.sampled_from(get_args(schema.Processing)),
        "dtype": st.sampled_from(get_args(schema.Dtype)),
        "prepend_bos": st.booleans(),
        "tagger": st.sampled_from(["none", "corpus"]) | texts.map(lambda name: f"/{name}"),
        "allow_pickle": st.booleans(),
    }
)


def test_what_is_written_is_read_back_equal(tmp_path):
    @quick
    @given(specs)
    def check(values):
        spec = Spec(**values)
        again = read_spec(write(tmp_path / "spec.toml", write_spec(spec)))
        assert again == spec
        assert again.digest() == spec.digest()
        assert write_spec(again) == write_spec(spec)

    check()


@pytest.mark.parametrize("character", ["\x7f", "\x00", "\x1f", '"', "\\", "\u2028", "😀", "\r\n", "\t"])
def test_every_character_survives(character, tmp_path):
    spec = Spec(models=(f"/a{character}b",), corpus="demo")
    assert read_spec(write(tmp_path / "spec.toml", write_spec(spec))) == spec


@quick
@given(specs, specs)
def test_the_digest_tells_specs_apart(one, other):
    assert (Spec(**one).digest() == Spec(**other).digest()) == (one == other)
    assert Spec(**one).digest() == Spec(**one).digest()
    key = next((key for key in one if one[key] != other[key]), None)
    if key is not None:  # one key that differs is enough
        assert Spec(**(one | {key: other[key]})).digest() != Spec(**one).digest()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)
keys = st.sampled_from([field.name for field in fields(Spec)]) | st.text(max_size=10)


def toml(value) -> str:
    """Return a value as TOML; what TOML cannot say becomes what it refuses."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {toml(v)}" for key, v in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def test_no_file_at_all_raises_anything_else(tmp_path):
    path = tmp_path / "spec.toml"

    def read(data: bytes):
        path.write_bytes(data)
        try:
            spec = read_spec(path)
        except InputError:
            return
        assert read_spec(write(path, write_spec(spec))) == spec

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(keys, values, max_size=6), st.booleans())
    def tables(table, with_needed):
        lines = [f"{json.dumps(key, ensure_ascii=False)} = {toml(value)}\n" for key, value in table.items()]
        read((SMALL * with_needed + "".join(lines)).encode("utf-8", "surrogatepass"))

    @quick
    @given(st.sampled_from([field.name for field in fields(Spec)]), values)
    def one_wrong_value(key, value):
        needed = {"models": ["mini-s"], "corpus": "demo"} | {key: value}
        read(
            "".join(f"{key} = {toml(value)}\n" for key, value in needed.items()).encode(
                "utf-8", "surrogatepass"
            )
        )

    @quick
    @given(
        st.binary(max_size=50) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
    def bytes_of_any_kind(data):
        read(data)

    tables()
    one_wrong_value()
    bytes_of_any_kind()


def test_sinks_are_dropped_by_rules_that_a_run_can_apply():
    spec = Spec(models=("mini-s",), corpus="demo", drop_sinks=["size>12", "special"])
    assert parse_spec(write_spec(spec)).drop_sinks == ("size>12", "special")
    with pytest.raises(InputError, match=r"drop_sinks of a run must be .* got 'odd'"):
        Spec(models=("mini-s",), corpus="demo", drop_sinks="odd")
    with pytest.raises(InputError, match=r"keep = 'moments' sees every token once.* use keep = 'norms'"):
        Spec(models=("mini-s",), corpus="demo", drop_sinks="size", keep="moments")
    assert Spec(models=("mini-s",), corpus="demo", drop_sinks="special", keep="moments").drop_sinks == (
        "special",
    )


def test_a_misspelt_key_is_refused_with_the_right_one():
    with pytest.raises(InputError, match=r"There is no key 'formla'.* Did you mean 'formula'"):
        Spec(models="mini-s", corpus="demo", formla="log_norm ~ lag1")
    spec = Spec(models="mini-s", corpus="demo")
    assert pickle.loads(pickle.dumps(spec)) == spec
