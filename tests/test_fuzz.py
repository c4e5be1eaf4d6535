"""Fuzzing: what is read from outside is read right or refused in one of mechreg's own errors, whatever its bytes.

Exact: any other exception than a MechregError fails, and so does a message of several lines. Of the spec and the
corpus, random structures beside what is right; of every file of a run, random damage (bytes changed, cut out, put in,
the end lost), after which what is read back must be what was written, to the bit, or be refused. The profile "fuzz"
(the environment's HYPOTHESIS_PROFILE) makes ten times as many, others every time: `make fuzz`.
"""

import gzip
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechreg as mr
from mechreg.corpus import stream_corpus
from mechreg.run.preflight import check_formula
from mechreg.schema import DOCUMENT_COLUMNS, MechregError
from mechreg.spec import Spec, parse_spec, read_spec, write_spec
from mechreg.store import read_norm_shard, read_token_shard

BIG = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
SPENT = {"executions": 0}


def fuzz(few: int):
    """Return settings: ``few`` examples in the normal tests, always the same; ten times as many of profile "fuzz"."""
    return settings(
        max_examples=10 * few if BIG else few,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not BIG,
        database=None,
        print_blob=True,
    )


def tried(call, *args, **options):
    """Return what a call gives, or its refusal."""
    SPENT["executions"] += 1
    try:
        return call(*args, **options)
    except MechregError as error:
        said = str(error)
        assert said
        assert "Traceback" not in said
        return error


@pytest.fixture(autouse=True)
def counted(request):
    """Note how often each test tried something, where the environment names a file for it."""
    SPENT["executions"] = 0
    yield
    if where := os.environ.get("FUZZ_COUNTS"):
        with open(where, "a") as file:
            file.write(f"{SPENT['executions']} {request.node.name}\n")


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


# Texts with what breaks readers: quotes, line ends of all kinds, marks, half characters are in the bytes below.
texts = st.text(max_size=60) | st.sampled_from(
    [
        "",
        " ",
        "\ufeff",
        "\u2028",
        "\x00",
        "\r\n",
        '"',
        "'",
        '"""',
        "\t",
        "#",
        "\\",
        "a\rb",
        "\ud7ff",
        "é" * 30,
    ]
)
damage = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "put", "end", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes) -> bytes:
    """Return bytes that were changed at random places."""
    for kind, place, new in changes:
        at = int(place * len(data))
        if kind == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "cut":
            data = data[:at] + data[at + len(new) :]
        elif kind == "put":
            data = data[:at] + new + data[at:]
        elif kind == "end":
            data = data[:at]
        else:
            data = data[at:] + data[:at]
    return data


# ----------------------------------------------------------------------------------------------------------- the spec

RIGHT = Spec(models=("mini-s", "../m/x"), corpus="demo", lags=(1, 2, 3), name="été 1", prepend_bos=True)
KEYS = list(Spec.__dataclass_fields__)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["demo", "attn_out", "hac"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)


def toml(value) -> str:
    """Return a value as TOML, near enough: what is none of TOML's is refused as that."""
    return json.dumps(value, ensure_ascii=False).replace("NaN", "nan").replace("Infinity", "inf")


def is_right(spec) -> None:
    assert parse_spec(write_spec(spec)) == spec
    assert isinstance(spec.digest(), str)


@fuzz(150)
@given(st.dictionaries(st.sampled_from(KEYS) | texts, values, max_size=6))
def test_a_spec_of_any_keys(table):
    lines = ['models = ["mini-s"]'] * ("models" not in table) + ['corpus = "demo"'] * ("corpus" not in table)
    lines += [f"{key if key in KEYS else json.dumps(key)} = {toml(value)}" for key, value in table.items()]
    spec = tried(parse_spec, "\n".join(lines))
    if isinstance(spec, Spec):
        is_right(spec)


@fuzz(100)
@given(damage)
def test_a_spec_with_damaged_bytes(folder, changes):
    path = folder / "spec.toml"
    path.write_bytes(damaged(write_spec(RIGHT).encode(), changes))
    spec = tried(read_spec, path)
    if isinstance(spec, Spec):
        is_right(spec)


WORDS = "log_norm ~ lag1 lag2 layer_below np.log np C bs Q I df lambda if"
SIGNS = ". ( ) + - * : ** 'a' 0 1 5 , = [ ] { } | %in% é"
pieces = st.sampled_from([*WORDS.split(), *SIGNS.split(), "__import__", " ", "\n"])


@fuzz(150)
@given(st.lists(pieces, max_size=10).map(" ".join) | texts)
def test_a_formula_of_any_words(formula):
    def both():
        check_formula(Spec(models=("m",), corpus="demo", formula=formula), ("source",))
        mr.LagSums(formula)

    tried(both)


# --------------------------------------------------------------------------------------------------------- the corpus

cells = texts | st.none() | st.integers() | st.floats() | st.booleans() | st.lists(texts, max_size=2)
table_rows = st.lists(
    st.dictionaries(
        st.sampled_from(["text", "doc", "id", "source", "genre", "problem", "words", "year"]) | texts,
        cells,
        max_size=4,
    ),
    max_size=4,
)
CONLLU = (
    "# newdoc id = a\n# meta::genre = news\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\tdo\tAUX\tVBP\t_\t0\troot\t_\t_\n"
    "2\tn't\tnot\tPART\tRB\t_\t1\tx\t_\tSpaceAfter=No\n3.1\tx\tx\tX\tX\t_\t_\t_\t_\t_\n3\t.\t.\tPUNCT\t.\t_\t1\tp\t_\t_\n\n"
)


def as_parquet(rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [str(row.get("text")) for row in rows], "n": range(len(rows))}), sink)
    return sink.getvalue()


def as_csv(rows) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False).encode("utf-8", "surrogatepass")


MAKERS = {
    ".txt": lambda rows: "\n".join(str(row) for row in rows).encode(),
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".conllu": lambda rows: CONLLU.replace("news", str(rows)[:20].replace("\n", " ")).encode(),
}


def is_a_corpus(documents) -> None:
    """Check what every documents frame must hold to."""
    assert documents["doc"].is_unique
    for column in DOCUMENT_COLUMNS:
        assert all(isinstance(entry, str) for entry in documents[column])
    assert set(documents["problem"]) <= {"", "empty", "whitespace", "undecodable"}
    assert (documents["problem"] == "").any()
    for text, problem in documents[["text", "problem"]].itertuples(index=False):
        assert problem or text.strip()
        text.encode()


def read_both_ways(folder, kind, data, zipped) -> None:
    path = folder / f"corpus{kind}{'.gz' * zipped}"
    path.write_bytes(data)
    whole = tried(mr.read_corpus, str(path))
    parts = tried(lambda: list(stream_corpus(str(path), characters=50)))
    assert isinstance(whole, Exception) == isinstance(parts, Exception), (whole, parts)
    if not isinstance(whole, Exception):
        is_a_corpus(whole)
        stacked = pd.concat(parts, ignore_index=True)
        for column in DOCUMENT_COLUMNS:
            assert stacked[column].tolist() == whole[column].tolist()


@pytest.mark.parametrize("kind", MAKERS)
@fuzz(20)
@given(
    rows=table_rows, changes=damage, spoil=st.sampled_from(["no", "inside", "outside"]), zipped=st.booleans()
)
def test_a_corpus(folder, kind, rows, changes, spoil, zipped):
    data = MAKERS[kind](rows)
    if spoil == "inside":
        data = damaged(data, changes)
    if zipped:
        data = gzip.compress(data, compresslevel=1)
    if spoil == "outside":
        data = damaged(data, changes)
    read_both_ways(folder, kind, data, zipped)


@pytest.mark.parametrize("kind", MAKERS)
@fuzz(10)
@given(data=st.binary(max_size=200), zipped=st.booleans())
def test_a_corpus_of_any_bytes(folder, kind, data, zipped):
    read_both_ways(folder, kind, data, zipped)


# ---------------------------------------------------------------------------------------------------------- the store


@pytest.fixture(scope="module")
def finished(folder):
    spec = Spec(models=("mini-s",), corpus=str(folder / "two.jsonl"), keep="norms")
    lines = ["The old ship lay in the harbour. " * 4, "Waves came and went; he counted them. " * 4]
    (folder / "two.jsonl").write_text(
        "".join(json.dumps({"text": line, "source": line[:3]}) + "\n" for line in lines)
    )
    with pytest.MonkeyPatch.context() as patch:  # what is drawn is not read
        carry_out = sys.modules["mechreg.run.carry_out"]  # mechreg.run has a function of that name
        patch.setattr(carry_out, "draw_figures", lambda *args, **options: None)
        patch.setattr(carry_out, "run_report", lambda folder: "")
        return mr.run_spec(spec, out=folder / "run", progress=False)


def everything(run):
    """Return all that a run gives when it is read, each by itself."""
    opened = mr.open_run(run)
    return {
        "spec": lambda: opened.spec,
        "records": lambda: opened.records,
        "norms": opened.norms,
        "layer": lambda: opened.norms(layers=[2]),
        "source": lambda: opened.norms(sources=["The"], layers=[1, 2]),
        "tokens": lambda: opened.tokens(models=["mini-s"]),
        "coefficients": lambda: opened.coefficients,
        "statistics": lambda: opened.statistics,
        "all": opened.require_all,
    }


@pytest.fixture(scope="module")
def right(finished):
    return {name: read() for name, read in everything(finished).items()}


def same(got, right) -> bool:
    return got.equals(right) if isinstance(right, pd.DataFrame) else got == right


FILES = [
    "norms/mini-s/attn_out/*.parquet",
    "tokens/mini-s/*.parquet",
    "models/*.json",
    "_manifest.json",
    "spec.toml",
    "coefficients.parquet",
    "statistics.csv",
]


@pytest.mark.parametrize("place", FILES)
@fuzz(10)
@given(changes=damage)
def test_a_damaged_run_is_refused_or_read_right(finished, right, place, changes):
    (path,) = finished.glob(place)
    data = path.read_bytes()
    try:
        path.write_bytes(damaged(data, changes))
        for name, read in everything(finished).items():
            got = tried(read)
            # A spec or record that is one still, of other words, is what the folder says.
            if not isinstance(got, Exception) and not place.endswith((".json", ".toml")):
                assert same(got, right[name]), name
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["norms", "tokens"])
@fuzz(20)
@given(changes=damage)
def test_a_damaged_shard_alone(finished, folder, kind, changes):
    (path,) = (finished / kind).rglob("*.parquet")
    copy = folder / path.name
    copy.write_bytes(damaged(path.read_bytes(), changes))
    read = read_norm_shard if kind == "norms" else read_token_shard
    got = tried(read, copy)
    if not isinstance(got, Exception):
        assert same(got, read(path))


@pytest.fixture(scope="module")
def sums(finished, folder):
    """The file of a run's sums, and their coefficients."""
    path = folder / "sums.npz"
    mr.LagSums.from_frame(mr.add_lags(mr.open_run(finished).norms())).save(path)
    return path, mr.LagSums.load(path).coefficients()


@fuzz(20)
@given(changes=damage)
def test_damaged_sums(sums, folder, changes):
    path, right = sums
    (folder / "spoiled.npz").write_bytes(damaged(path.read_bytes(), changes))
    got = tried(mr.LagSums.load, folder / "spoiled.npz")
    if not isinstance(got, Exception):
        assert same(got.coefficients(), right)
