"""Corpora read from every source, and token windows against the tokenizer called without the module.

No tolerances: texts, ids, positions and spans are exact. What windows must be is computed here from the text's
bytes and from a bare call of the tokenizer; what CoNLL-U says is parsed here a second time, in another way.
"""

import copy
import glob
import gzip
import inspect
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import uuid
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mechreg import miniatures
from mechreg.corpus import corpus_problems, formats, read_corpus, stream_corpus, tokenize
from mechreg.corpus.reading import files_of
from mechreg.schema import (
    DOCUMENT_COLUMNS,
    TOKEN_COLUMNS,
    InputError,
    MechregError,
    SchemaError,
    document_ids,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/ is not beside the clone")
quick = settings(max_examples=40, deadline=None)
unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def make_model(tokenizer, *, n_ctx=8, d_vocab=320):
    """Return what `tokenize` uses of a model."""
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=n_ctx, d_vocab=d_vocab))


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(tokenizer)


def bare_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ---------------------------------------------------------------------------------------------- lists and frames


def test_texts_of_a_list_are_kept_as_they_are():
    texts = ["One.\r\n  Two.\t", "\ufeffthree", "<b>é</b>\u2028"]
    documents = read_corpus(texts)
    assert documents["text"].tolist() == texts
    assert documents["doc"].tolist() == ["text-0", "text-1", "text-2"]
    assert documents["source"].tolist() == ["text"] * 3
    assert {name: str(dtype) for name, dtype in documents.dtypes.items()} == DOCUMENT_COLUMNS
    pd.testing.assert_frame_equal(read_corpus(tuple(texts)), documents)


def test_what_is_wrong_with_a_document_is_said_and_its_text_blanked():
    documents = read_corpus(["fine", "", " \n\u3000", "half \ud83d", None])
    assert documents["problem"].tolist() == ["", "empty", "whitespace", "undecodable", "empty"]
    assert documents["text"].tolist() == ["fine", "", " \n\u3000", "", ""]
    assert corpus_problems(documents).to_dict("list") == {
        "doc": ["text-1", "text-2", "text-3", "text-4"],
        "problem": ["empty", "whitespace", "undecodable", "empty"],
    }


def test_a_frame_keeps_its_annotations_and_is_left_alone():
    frame = pd.DataFrame(
        {
            "id": [7, 8],
            "source": ["news", None],
            "body": ["a b", "c d"],
            "year": [1848, 1849],
            "tags": [["x"], []],
        },
        index=[5, 5],
    )
    before = frame.copy(deep=True)
    documents = read_corpus(frame, text="body")
    pd.testing.assert_frame_equal(frame, before)
    assert documents["doc"].tolist() == ["7", "8"]
    assert documents["source"].tolist() == ["news", "row"]
    assert documents["year"].tolist() == [1848, 1849]
    assert documents["tags"].tolist() == [["x"], []]
    assert [*documents] == ["doc", "text", "source", "problem", "year", "tags"]
    pd.testing.assert_frame_equal(read_corpus(documents), documents)


def test_doc_comes_before_id_and_a_genre_stays_one():
    frame = pd.DataFrame({"id": [1], "doc": ["d"], "genre": ["g"], "source": ["s"], "text": ["t"]})
    assert read_corpus(frame).iloc[0].to_dict() == {
        "doc": "d", "text": "t", "source": "s", "problem": "", "id": 1, "genre": "g",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (["a", 5], r"The list: the text of 'text-1' must be a string; got int"),
        (["a", b"b"], r"the text of 'text-1' must be a string; got bytes"),
        ([], r"no usable text \(documents read: none\)"),
        (["", " ", ""], r"no usable text \(documents read: 2 empty, 1 whitespace\)"),
        (5, "needs a path, a glob, 'demo', 'datasets:NAME', a list or dict of str, or a frame; got int"),
        (pd.DataFrame({"txt": ["a"]}), r"no column 'text'; it has \['txt'\].*Did you mean 'txt'"),
        (
            pd.DataFrame([["a", "b"]], columns=["text", "text"]),
            r"two columns of one name: \['text', 'text'\]",
        ),
        (pd.DataFrame({"text": ["a", "b"], "doc": ["x", "x"]}), "1 occur more than once, the first is 'x'"),
        (pd.DataFrame({"text": ["a", "b"], "doc": ["row-1", None]}), "the first is 'row-1'"),
        (pd.DataFrame({"text": [["a"]]}), "must be a string; got list"),
    ],
)
def test_what_is_no_corpus_is_refused_with_the_remedy(corpus, message):
    with pytest.raises(InputError, match=message):
        read_corpus(corpus)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2], ["1", "2"]),
        (["1", "2"], ["1", "2"]),
        (np.array([1, 2], np.int8), ["1", "2"]),
        (pd.array([2**53 + 1, None], dtype="Int64"), ["9007199254740993", "row-1"]),
        (np.array([1.0, np.nan]), ["1", "row-1"]),  # what pandas makes of whole numbers, one of them missing
        (np.array([1, 2], np.float32), ["1", "2"]),
        ([Decimal("18446744073709551617"), Decimal("2.0")], ["18446744073709551617", "2"]),
        ([b"a", uuid.UUID(int=5)], ["a", "00000000-0000-0000-0000-000000000005"]),
        (pd.Categorical([7, 8]), ["7", "8"]),
        (["007", 7], ["007", "7"]),
    ],
)
def test_an_id_is_one_text_whatever_holds_it(given, expected):
    frame = pd.DataFrame({"doc": given, "text": ["a", "b"]})
    assert read_corpus(frame)["doc"].tolist() == expected
    assert document_ids(frame["doc"]).replace("", "row-1").tolist() == expected


@pytest.mark.parametrize(
    "entry",
    [1.5, 2.0**53, np.float32(2**24), np.inf, True, np.True_, (1, 2), ["a"], {"a": 1}, Decimal("1.5")],
)
def test_an_ambiguous_id_is_refused(entry):
    frame = pd.DataFrame({"doc": pd.Series([entry, "b"], dtype=object), "text": ["a", "b"]})
    with pytest.raises(InputError, match="The frame: A document's id must be text or a whole number"):
        read_corpus(frame)


def test_ids_that_become_one_text_are_refused():
    with pytest.raises(InputError, match="1 occur more than once, the first is '1'"):
        read_corpus(pd.DataFrame({"doc": [1, "1"], "text": ["a", "b"]}))


def test_texts_by_id():
    assert read_corpus({7: "a", "x": "b"})[["doc", "text"]].values.tolist() == [["7", "a"], ["x", "b"]]
    assert read_corpus(pd.Series(["a", "b"]))["doc"].tolist() == ["text-0", "text-1"]
    assert read_corpus(pd.Series(["a", "b"], index=["x", "y"]))["doc"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": 3}, "text must be the name of the column that holds the text; got 3"),
        ({"text": None}, "text must be the name"),
        ({"tags": 1}, "tags must be True or False; got 1"),
    ],
)
def test_wrong_kinds_of_options_are_refused(options, message):
    read = inspect.unwrap(read_corpus)  # without the checks of types
    with pytest.raises(InputError, match=message):
        read(["a"], **options)


def test_what_a_user_calls_problem_is_not_written_over():
    with pytest.raises(InputError, match="The frame has a column 'problem', which mechreg adds itself"):
        read_corpus(pd.DataFrame({"text": ["a"], "problem": ["2 + 2"]}))


def test_numbers_that_are_held_as_objects_stay_numbers():
    frame = pd.DataFrame(
        {"text": ["a", "b"], "price": [Decimal("1.5"), None], "n": [2**53 + 1, None]}, dtype=object
    )
    documents = read_corpus(frame)
    assert documents["price"].dtype == np.float64
    assert documents["price"].tolist()[0] == 1.5
    assert documents["n"].tolist()[0] == 2**53 + 1


# --------------------------------------------------------------------------------------------------- text files


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_glob_of_text_files(tmp_path):
    write(tmp_path / "news/b.txt", "B.\r\n")
    write(tmp_path / "news/a.v2.txt", b"\xef\xbb\xbfA.")
    write(tmp_path / "news/latin.txt", "Öl".encode("latin-1"))
    write(tmp_path / "news/nothing.txt", "")
    documents = read_corpus(str(tmp_path / "news/*.txt"))
    assert documents["doc"].tolist() == ["a.v2", "b", "latin", "nothing"]
    assert documents["text"].tolist() == ["A.", "B.\r\n", "", ""]
    assert documents["problem"].tolist() == ["", "", "undecodable", "empty"]
    assert documents["source"].tolist() == ["news"] * 4


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    write(tmp_path / "news/a.txt", "A.")
    write(tmp_path / "blog/a.txt", "B.")
    documents = read_corpus(str(tmp_path / "**/*.txt"))
    assert documents[["doc", "source"]].values.tolist() == [["blog/a", "blog"], ["news/a", "news"]]
    write(tmp_path / "news/a.TXT.gz", gzip.compress(b"C."))
    with pytest.raises(InputError, match="the first is 'a'"):
        read_corpus(str(tmp_path / "news/*"))


def test_a_path_that_looks_like_a_glob_is_that_file(tmp_path):
    write(tmp_path / "a[1].txt", "brackets")
    write(tmp_path / "a1.txt", "none")
    assert read_corpus(tmp_path / "a[1].txt")["text"].tolist() == ["brackets"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "A.")
    assert read_corpus("~/a.txt")["doc"].tolist() == ["a"]


def test_a_link_to_a_folder_above_brings_no_file_twice(tmp_path):
    write(tmp_path / "texts/a.txt", "A.")
    (tmp_path / "texts/loop").symlink_to(tmp_path / "texts")
    assert read_corpus(str(tmp_path / "texts/**/*.txt"))["doc"].tolist() == ["a"]


def test_links_that_lead_round_about_are_followed_once(tmp_path):
    write(tmp_path / "a" / "b" / "one.txt", "1")
    write(tmp_path / "two.txt", "2")
    for name in ("x", "y", "z"):  # 3**40 paths
        (tmp_path / "a" / name).symlink_to(tmp_path, target_is_directory=True)
    assert sorted(read_corpus(f"{tmp_path}/**/*.txt")["text"]) == ["1", "2"]
    assert sorted(read_corpus(f"{tmp_path}/**/b/**/*.txt")["text"]) == ["1"]
    assert sorted(read_corpus(f"{tmp_path}/**")["text"]) == ["1", "2"]


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*.txt",
        "**",
        "a/**",
        "**/b/*.txt",
        "a/**/*.txt",
        "*/**/*.txt",
        "**/**/*.txt",
        "**/b/**",
        "a*/**/o?e.*",
    ],
)
def test_without_links_a_glob_finds_what_pythons_finds(pattern, tmp_path, monkeypatch):
    for name in (
        "one.txt",
        "a/one.txt",
        "a/b/one.txt",
        "a/b/c/two.txt",
        "a/.hidden/one.txt",
        "ab/b/.one.txt",
        "ab/[x]/one.txt",
    ):
        write(tmp_path / name, name)
    monkeypatch.chdir(tmp_path)
    for full in (pattern, f"{tmp_path}/{pattern}", f"./{pattern}"):
        expected = {os.path.abspath(path) for path in glob.glob(full, recursive=True) if os.path.isfile(path)}
        assert {os.path.abspath(path) for path, _ in files_of(full, remedy="")} == expected


def test_what_is_no_file_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    write(tmp_path / "a.docx", "A.")
    write(tmp_path / "noext", "A.")
    write(tmp_path / "cut.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99)[:-9])
    write(tmp_path / "no.jsonl.gz", "no gzip")
    for name, message in [
        ("brok*", "cannot be read: it does not exist"),
        ("sel*", "cannot be read: it does not exist"),
        ("pip*", "or is a pipe"),
        ("*.docx", r"\.txt, \.jsonl, \.csv, \.parquet, \.conllu, or a \.gz"),
        ("noext", "has an unsupported suffix"),
        ("cut.jsonl.gz", "cannot be read: Compressed file ended"),
        ("no.jsonl.gz", "cannot be read: Not a gzipped file"),
        ("*.csv", r"There is no file .*give a text itself in a list: \[text\]"),
        ("", r"is a folder; give its files: '.*/\*\.txt'"),
    ]:
        with pytest.raises(InputError, match=message):
            read_corpus(str(tmp_path / name))
    with pytest.raises(InputError, match="Did you mean 'demo'"):
        read_corpus("demos")
    with pytest.raises(InputError, match=r"There is no file 'A text.{80}"):
        read_corpus("A text that was not put into a list. " * 1000)


@quick
@example("\ud800")
@given(
    st.text(st.characters(exclude_characters="/*"), max_size=20).filter(lambda path: path not in {".", ".."})
)
def test_no_path_at_all_raises_anything_else(path):
    with pytest.raises(InputError):
        read_corpus(path + "?")


# --------------------------------------------------------------------------------------------------- rows in files


def jsonl(rows) -> bytes:
    return b"".join(
        json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n" for row in rows
    )


def csv_of(rows) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False, quoting=1).encode()


def parquet_of(rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS = {".jsonl": jsonl, ".csv": csv_of, ".parquet": parquet_of}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_keep_id_source_and_annotations(kind, packed, tmp_path):
    rows = [
        {
            "id": "007",
            "source": "news",
            "text": 'He said "no", twice.\nThen left.',
            "year": 1848,
            "score": 0.5,
        },
        {"id": "8", "source": "blog", "text": "NA", "year": 1849, "score": 1.5},
    ]
    data = WRITERS[kind](rows)
    path = tmp_path / f"rows{kind}{'.gz' if packed else ''}"
    documents = read_corpus(write(path, gzip.compress(data) if packed else data))
    assert documents["doc"].tolist() == ["007", "8"]
    assert documents["source"].tolist() == ["news", "blog"]
    assert documents["text"].tolist() == [row["text"] for row in rows]
    assert documents["problem"].tolist() == ["", ""]
    assert documents["year"].tolist() == [1848, 1849]
    assert documents["score"].tolist() == [0.5, 1.5]
    assert [*documents] == ["doc", "text", "source", "problem", "year", "score"]


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_without_id_or_source_are_named_after_the_file(kind, tmp_path):
    path = write(tmp_path / f"my.rows{kind}", WRITERS[kind]([{"body": "a"}, {"body": "b"}]))
    documents = read_corpus(path, text="body")
    assert documents[["doc", "source", "text"]].values.tolist() == [
        ["my.rows-0", "my.rows", "a"],
        ["my.rows-1", "my.rows", "b"],
    ]
    with pytest.raises(
        InputError, match=rf"my\.rows\{kind} has no column 'text'; it has \['body'\]. Name the right one with"
    ):
        read_corpus(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_any_texts_come_back_as_they_were(kind, tmp_path):
    path = tmp_path / f"texts{kind}"

    @quick
    @given(st.lists(unicode_texts, min_size=1, max_size=5))
    def check(texts):
        path.write_bytes(
            WRITERS[kind]([{"doc": f"d{i}", "text": text} for i, text in enumerate(["x", *texts])])
        )
        documents = read_corpus(path)
        assert documents["text"].tolist() == ["x", *texts]
        assert documents["problem"].eq("").tolist() == [True, *(bool(text.strip()) for text in texts)]

    check()


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_row_that_is_not_utf8_is_known_by_its_id(kind, tmp_path):
    data = WRITERS[kind]([{"id": "a", "text": "Oel"}, {"id": "b", "text": "Öl"}, {"id": "c", "text": "Wein"}])
    documents = read_corpus(write(tmp_path / f"rows{kind}", data.replace("Ö".encode(), b"\xd6")))
    assert documents[["doc", "problem"]].values.tolist() == [["a", ""], ["b", "undecodable"], ["c", ""]]


def test_a_parquet_row_that_is_not_utf8_is_known_by_its_id(tmp_path):
    raw = pa.array([b"fine", b"\xd6l", None], pa.binary())
    as_text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())  # a writer that did not look
    for name, column in (("text", as_text), ("bytes", raw)):
        pq.write_table(pa.table({"id": ["a", "b", "c"], name: column}), tmp_path / "rows.parquet")
        documents = read_corpus(tmp_path / "rows.parquet", text=name)
        assert documents["problem"].tolist() == ["", "undecodable", "empty"]
    pq.write_table(pa.table({"text": ["x", "y", "z"], "note": as_text}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet cannot be read: .*UTF8"):
        read_corpus(tmp_path / "rows.parquet")


def test_parquet_of_other_types(tmp_path):
    path = tmp_path / "year=1848" / "rows.parquet"  # the path's key is no column
    path.parent.mkdir()
    table = pa.table(
        {"text": pa.array(["a", "b", "a"]).dictionary_encode(), "when": pa.array([1, 2, 3], pa.date32())}
    )
    pq.write_table(table, path)
    documents = read_corpus(path)
    assert documents["text"].tolist() == ["a", "b", "a"]
    assert [*documents] == ["doc", "text", "source", "problem", "when"]
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(InputError, match="the text of 'rows-0' must be a string; got int"):
        read_corpus(path)


def test_whole_numbers_of_which_some_are_missing_are_not_rounded(tmp_path):
    big = [2**53 + 1, None, 2**53 + 3, 0]
    table = pa.table(
        {"id": pa.array(big), "text": list("abcd"), "n": pa.array(big), "m": pa.array([1, None, 3, 4])}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    csv_rows = "".join(f"{'' if i is None else i},{text}\n" for i, text in zip(big, "abcd", strict=True))
    write(tmp_path / "a.csv", "n,text\n" + csv_rows)
    documents = read_corpus(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.concat(stream_corpus(f"{tmp_path}/a.parquet")), documents)
    assert documents["doc"].tolist() == [str(2**53 + 1), "a-1", str(2**53 + 3), "0"]
    assert documents["m"].dtype == np.float64
    for name in ("a.parquet", "a.csv"):
        assert read_corpus(tmp_path / name)["n"].dropna().tolist() == [2**53 + 1, 2**53 + 3, 0]


def test_decimals_of_a_parquet_are_numbers(tmp_path):
    table = pa.table({"text": ["a", "b"], "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_corpus(tmp_path / "a.parquet")["price"].dtype == np.float64


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"id;text\n1;a, b\n", "columns are separated by semicolons"),
        ("a.csv", b'"id"\t"text"\n1\ta\n', r"columns are separated by tabs; .*sep='\\t'"),
        (
            "a.csv",
            "id,text\n1,a\n".encode("utf-16"),
            "it is UTF-16; save it as UTF-8, for example with `iconv",
        ),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "it is UTF-16"),
        ("a.conllu", "# newdoc\n".encode("utf-16-be", "replace").join([b"\xfe\xff", b""]), "it is UTF-16"),
        ("a.csv", "id,text,source\n1,a,ö\n".encode("latin-1"), "it is not UTF-8: save it as .*LATIN1"),
        (
            "a.jsonl",
            '{"text": "a", "text": "b"}',
            "line 1 is not JSON .the key 'text' occurs twice in one object",
        ),
    ],
)
def test_another_encoding_or_separator_is_refused_with_the_remedy(name, data, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / name, data))


def test_a_folder_has_one_name_in_every_terminal(tmp_path):
    write(tmp_path / "cö" / "ä.txt", "A cat.")
    (tmp_path / "spec.toml").write_text('models = ["m"]\ncorpus = "cö/*.txt"\n', encoding="utf-8")
    program = "import sys; from mechreg.spec import read_spec; from mechreg.corpus import read_corpus;"
    program += "spec = read_spec(sys.argv[1]); sys.stdout.buffer.write(spec.corpus.encode() + b'|')\n"
    program += (
        "sys.stdout.buffer.write('|'.join(read_corpus(spec.corpus).iloc[0][['doc', 'source']]).encode())"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "spec.toml")],
        env=os.environ | ascii_only,
        capture_output=True,
    )
    assert said.stdout.decode() == f"{tmp_path}/cö/*.txt|ä|cö", said.stderr.decode()


# ---------------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("kind", [".txt", ".csv", ".conllu", ".jsonl", ".parquet"])
def test_a_packed_file_that_unpacks_without_end_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "UNPACKED", 10_000)
    path = write(tmp_path / f"a{kind}.gz", gzip.compress(b"\n" * 3_000_000))
    with pytest.raises(InputError, match=r"it unpacks to more than 100 times its size.* unpack it and give"):
        read_corpus(path)
    with pytest.raises(InputError, match="it unpacks to more than 100 times"):
        list(stream_corpus(path))


def test_a_parquet_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "UNPACKED", 10_000)
    pq.write_table(pa.table({"text": ["a"] * 200_000}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"it unpacks to 200,000 rows"):
        read_corpus(tmp_path / "a.parquet")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 1_000)
    fine = {"text": "a" * 900}
    assert len(read_corpus(write(tmp_path / "a.jsonl", jsonl([fine, fine])))) == 2
    with pytest.raises(InputError, match="a line has more than 1,000 bytes; a line is one document"):
        read_corpus(write(tmp_path / "b.jsonl", jsonl([fine]) + b'{"text": "' + b"a" * 5_000))


def test_a_file_too_large_to_be_read_whole_is_refused(tmp_path):
    for name in ("a.txt", "a.csv", "a.conllu"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)  # sparse: it takes no place
        with pytest.raises(InputError, match=r"its 1,099,511,627,776 bytes are more than .* split it"):
            read_corpus(tmp_path / name)


def test_json_lines_with_holes(tmp_path):
    lines = b'\xef\xbb\xbf{"id": 1, "text": "a", "n": 5}\r\n\r\n'
    lines += b'{"id": null, "text": "half \\ud83d"}\n{"id": 3, "note": "\xff"}\n'
    documents = read_corpus(write(tmp_path / "rows.jsonl", lines))
    assert documents["doc"].tolist() == ["1", "rows-1", "3"]
    assert documents["problem"].tolist() == ["", "undecodable", "empty"]
    assert documents["note"].tolist()[2] == r"\udcff"


def test_a_large_document_in_a_csv(tmp_path):
    text = "word, " * 500_000
    documents = read_corpus(write(tmp_path / "rows.csv", csv_of([{"text": text}, {"text": "b"}])))
    assert documents["text"].tolist() == [text, "b"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl cannot be read: line 2 is not JSON \(Expecting value"),
        ("a.jsonl", '{"text": "a"}\n["text"]\n', "line 2 is not a JSON object but a list"),
        ("a.jsonl", "[" * 100_000, "cannot be read: maximum recursion depth"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1 is not JSON"),
        ("a.jsonl", '{"text": 5}', "the text of 'a-0' must be a string; got int"),
        ("a.jsonl", '{"text": {"a": 1}}', "must be a string; got dict"),
        ("a.jsonl", "\n\n", r"documents read: none"),
        ("a.csv", "", r"documents read: none"),
        ("a.csv", "text\n", r"documents read: none"),
        ("a.csv", 'text,n\n"open,1\nb,2\n', "a quoted field does not end"),
        ("a.csv", "text,n\na,1,2\n", "Expected 2 columns, got 3"),
        ("a.csv", "text,text\na,b\n", "two columns of one name"),
        ("a.csv", "doc;text\n1;a\n", r"columns are separated by semicolons; .* pandas\.read_csv\(\.\.\., sep=';'\)"),
        ("a.parquet", "", "a.parquet cannot be read"),
        ("a.parquet", "PAR1 nothing PAR1", "a.parquet cannot be read"),
        ("a.txt", "", r"documents read: 1 empty"),
        ("a.txt", b"\xff", r"documents read: 1 undecodable"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_place(name, data, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / name, data))


@pytest.mark.parametrize("kind", [*WRITERS, ".conllu", ".txt", ".jsonl.gz"])
def test_no_bytes_at_all_raise_anything_else(kind, tmp_path):
    path = tmp_path / f"fuzz{kind}"
    rows = [{"id": "a", "text": "Öl, und", "n": 1}, {"id": "b", "text": 'x "y"', "n": 2}]
    good = {".conllu": SENTENCE.encode(), ".txt": b"Oel", ".jsonl.gz": gzip.compress(jsonl(rows))}
    good = good[kind] if kind in good else WRITERS[kind](rows)

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=60), st.integers(0, len(good)), st.integers(0, 20))
    def check(junk, at, cut):
        for data in (junk, good[:at] + junk + good[at + cut :]):
            path.write_bytes(data)
            try:
                documents = read_corpus(path)
            except InputError:
                continue
            assert documents["doc"].is_unique
            assert set(documents["problem"]) <= {"", "empty", "whitespace", "undecodable"}

    check()


# ------------------------------------------------------------------------------------------------------- CoNLL-U


def word(number, form, upos="NOUN", misc="_", xpos="NN"):
    return "\t".join([number, form, "_", upos, xpos, "_", "_", "_", "_", misc]) + "\n"


SENTENCE = (
    "# newdoc id = first\n# meta::genre = fiction\n# sent_id = 1\n# text = Don't go, Öl!\n"
    + word("1-2", "Don't", "_", "_", "_")
    + word("1", "Do", "AUX", "SpaceAfter=No", "VBP")
    + word("2", "n't", "PART", "_", "RB")
    + word("2.1", "ghost", "VERB")
    + word("3", "go", "VERB", "CorrectSpaceAfter=Yes|SpaceAfter=No", "VB")
    + word("4", ",", "PUNCT", "CorrectSpaceAfter=No", ",")
    + word("5", "Öl", "NOUN", "SpaceAfter=No", "NN")
    + word("6", "!", "PUNCT", "_", ".")
    + "\n"
)


def forms_and_tags(document) -> list[tuple[str, str, str]]:
    return [(document["text"][w["start"] : w["end"]], w["upos"], w["xpos"]) for w in document["words"]]


def test_conllu_known_answer_by_hand(tmp_path):
    document = read_corpus(write(tmp_path / "a.conllu", SENTENCE)).iloc[0].to_dict()
    assert {key: document[key] for key in ("doc", "source", "genre", "problem")} == {
        "doc": "first", "source": "a", "genre": "fiction", "problem": "",
    }  # fmt: skip
    assert document["text"] == "Don't go, Öl!"
    assert forms_and_tags(document) == [
        ("Do", "AUX", "VBP"), ("n't", "PART", "RB"), ("go", "VERB", "VB"), (",", "PUNCT", ","), ("Öl", "NOUN", "NN"),
        ("!", "PUNCT", "."),
    ]  # fmt: skip


def test_conllu_contraction_whose_parts_are_not_its_letters_is_one_word(tmp_path):
    rows = word("1", "Sortie", misc="_") + word("2-3", "du", "_", "SpaceAfter=No")
    rows += (
        word("2", "de", "ADP", xpos="P")
        + word("3", "le", "DET", xpos="D")
        + word("4", ".", "PUNCT", xpos=".")
    )
    document = read_corpus(write(tmp_path / "fr.conllu", rows)).iloc[0]
    assert document["text"] == "Sortie du."
    assert forms_and_tags(document) == [
        ("Sortie", "NOUN", "NN"),
        ("du", "ADP+DET", "P+D"),
        (".", "PUNCT", "."),
    ]
    assert (document["doc"], document["source"]) == ("fr", "fr")


def test_conllu_a_contraction_at_the_end_takes_nothing_from_the_next_sentence(tmp_path):
    end = (
        word("1", "I", "PRON") + word("2-3", "can't", "_") + word("2", "ca", "AUX") + word("3", "n't", "PART")
    )
    rows = (
        end
        + "\n"
        + word("1", "You", "PRON")
        + word("2", "can", "AUX", "SpaceAfter=No")
        + word("3", ".", "PUNCT")
    )
    document = read_corpus(write(tmp_path / "a.conllu", rows)).iloc[0]
    assert document["text"] == "I can't You can."
    assert [form for form, *_ in forms_and_tags(document)] == ["I", "ca", "n't", "You", "can", "."]


def test_conllu_an_id_that_comes_again_goes_on_and_what_is_said_is_kept(tmp_path):
    rows = "".join(
        f"# newdoc id = {doc}\n# meta::genre = news\n# meta::year = {year}\n{word('1', form)}\n"
        for doc, year, form in [("a", 1848, "One"), ("a", 1848, "two"), ("b", 1849, "Three")]
    )
    documents = read_corpus(write(tmp_path / "a.conllu", rows))
    assert documents[["doc", "text", "source", "genre", "year"]].values.tolist() == [
        ["a", "One two", "a", "news", 1848],
        ["b", "Three", "a", "news", 1849],
    ]
    assert documents["year"].dtype == np.int64
    assert [*documents] == ["doc", "text", "source", "problem", "words", "genre", "year"]
    with pytest.raises(
        InputError, match="line 7 says 'meta::genre' of document 'a' a second time, to another value"
    ):
        read_corpus(write(tmp_path / "b.conllu", rows.replace("news", "blog", 1)))
    with pytest.raises(
        InputError, match="line 2 says 'meta::text', a name that documents already have; rename it"
    ):
        read_corpus(write(tmp_path / "c.conllu", rows.replace("meta::genre", "meta::text")))
    again = (
        rows.replace("= b", "= a").replace("Three", "Three") + f"# newdoc id = c\n{word('1', 'x')}\n{rows}"
    )
    with pytest.raises(InputError, match="the first is 'a'"):
        read_corpus(write(tmp_path / "d.conllu", again.replace("1849", "1848")))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_conllu_documents_line_ends_and_odd_forms(newline, tmp_path):
    odd = (
        word("1", "10\u2028000", "NUM", "SpaceAfter=No")
        + word("2", "\x85", "SYM")
        + word("3", "a b\xa0", "X")
    )
    rows = f"# newdoc\n{odd}\n# newdoc id = b\n\n# newdoc\n# text = hi\n{word('1', 'hi')}"
    documents = read_corpus(write(tmp_path / "a.conllu", rows.replace("\n", newline)))
    assert documents["doc"].tolist() == ["a-0", "b", "a-2"]
    assert documents["problem"].tolist() == ["", "empty", ""]
    assert documents["text"].tolist() == ["10\u2028000\x85 a b\xa0", "", "hi"]
    assert [form for form, *_ in forms_and_tags(documents.iloc[0])] == ["10\u2028000", "\x85", "a b\xa0"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1\tform\n", r"a.conllu cannot be read: line 1 is not a word in CoNLL-U's ten columns: '1\\tform'"),
        (word("x", "form"), "line 1 is not a word"),
        (
            word("1-2", "don't") + word("1", "do"),
            "in the sentence before line 3, the words of 1-2 do not follow it",
        ),
        (word("2-1", "don't") + word("1", "do"), "the words of 2-1 do not follow it"),
        (word("1-2", "dont") + word("1", "do") + word("3", "nt"), "the words of 1-2 do not follow it"),
        (word("1-" + "9" * 30, "a") + word("1", "a"), "cannot be read: in the sentence before line 3"),
        ("# only = a comment\n", "documents read: none"),
    ],
)
def test_malformed_conllu_is_refused_with_its_line(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / "a.conllu", rows))


@needs_shared
def test_every_word_of_a_treebank_is_where_its_span_says(tmp_path):
    with tarfile.open(SHARED / "pos" / "gum.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    documents = read_corpus(str(tmp_path / "gum/*.conllu")).set_index("doc")
    assert len(documents) == 120
    assert documents["genre"].nunique() == 10
    for path in (tmp_path / "gum").glob("*.conllu"):
        doc, expected, sentences = "", [], []
        for line in path.read_text(encoding="utf-8").split("\n"):
            columns = line.split("\t")
            if line.startswith("# newdoc id"):
                doc = line.split(" = ")[1]
            elif line.startswith("# text = "):
                sentences.append(line.removeprefix("# text = "))
            elif columns[0].isdigit():
                expected.append((columns[1], columns[3], columns[4]))
        assert forms_and_tags(documents.loc[doc]) == expected
        assert documents.loc[doc, "text"].split() == " ".join(sentences).split()


# ----------------------------------------------------------------------------- the hub's data sets, and the demo


@pytest.fixture
def data_set_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "set"


def test_a_data_set_in_a_folder(data_set_cache):
    write(
        data_set_cache / "train.jsonl", jsonl([{"id": 1, "text": "a", "source": "g"}, {"id": 2, "text": ""}])
    )
    write(data_set_cache / "test.jsonl", jsonl([{"id": 3, "text": "c", "source": "g"}]))
    documents = read_corpus(f"datasets:{data_set_cache}")
    assert documents[["doc", "source", "problem"]].values.tolist() == [["1", "g", ""], ["2", "set", "empty"]]
    assert read_corpus(f"datasets:{data_set_cache}::test")["doc"].tolist() == ["3"]
    with pytest.raises(
        InputError, match=r"The data set '.*set' could not be loaded: .*nowhere.*datasets:NAME:CONFIG:SPLIT"
    ):
        read_corpus(f"datasets:{data_set_cache}::nowhere")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("imdb", ("imdb", None, "train")),
        ("a/b:en", ("a/b", "en", "train")),
        ("a/b:en:train[:10]", ("a/b", "en", "train[:10]")),
        ("a/b::test", ("a/b", None, "test")),
    ],
)
def test_what_the_hub_is_asked_for(name, asked, monkeypatch):
    def load_dataset(path, config, *, split):
        assert (path, config, split) == asked
        return SimpleNamespace(with_format=lambda kind: pa.table({"text": ["t"]}))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_corpus(f"datasets:{name}")["doc"].tolist() == [asked[0].split("/")[-1] + "-0"]


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError(""), KeyError("x")])
def test_a_data_set_that_cannot_be_had(error, monkeypatch):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        InputError, match=r"The data set 'a/b' could not be loaded: [^\n]+\. Check the network and the name"
    ):
        read_corpus("datasets:a/b")


def test_no_data_set_of_a_name_offline():
    with pytest.raises(InputError, match="The data set 'no-such-owner/no-such-set' could not be loaded"):
        read_corpus("datasets:no-such-owner/no-such-set")


def test_without_the_library_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_corpus("datasets:imdb")


def test_the_demo():
    documents = read_corpus("demo")
    assert len(documents) >= 48
    assert documents["source"].nunique() >= 6
    assert documents["problem"].eq("").all()
    pd.testing.assert_frame_equal(documents, read_corpus(miniatures.DEMO_CORPUS))


# ------------------------------------------------------------------------------------------------------- windows


texts_with_something = st.lists(unicode_texts, min_size=1, max_size=4).filter(
    lambda t: any(x.strip() for x in t)
)


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_windows_are_the_text_cut_in_pieces(prepend_bos, tokenizer):
    @quick
    @given(texts_with_something, st.integers(2, 9))
    @example(["0", "<|endoftext|>"], 2)
    @example(["<|endoftext|>b"], 2)
    def check(texts, n_ctx):
        texts = ["A", *texts]  # a text that is the BOS alone has no token of its own
        tokens = tokenize(make_model(tokenizer, n_ctx=9), texts, prepend_bos=prepend_bos, n_ctx=n_ctx)
        expected = {f"text-{i}": bare_ids(tokenizer, text) for i, text in enumerate(texts) if text.strip()}
        if prepend_bos:  # a text's own BOS is its first window's
            bos = tokenizer.bos_token_id
            expected = {doc: ids[1:] if ids[:1] == [bos] else ids for doc, ids in expected.items()}
            expected = {doc: ids for doc, ids in expected.items() if ids}
        found: dict[str, list[int]] = {}
        for (doc, window), rows in tokens.groupby(["doc", "window"], observed=True, sort=False):
            ids = rows["token_id"].tolist()
            assert rows["position"].tolist() == list(range(len(ids)))
            assert len(ids) <= n_ctx
            if prepend_bos:
                assert ids.pop(0) == tokenizer.bos_token_id
            step = n_ctx - prepend_bos
            assert found.setdefault(doc, []) == expected[doc][: window * step]
            assert len(ids) == min(step, len(expected[doc]) - window * step)
            found[doc] += ids
        assert found == expected

    check()


def test_any_text_comes_back_from_its_tokens(model, tokenizer):
    @quick
    @given(unicode_texts.filter(str.strip))
    def check(text):
        tokens = tokenize(model, [text], spans=True)
        assert tokenizer.decode(tokens["token_id"], clean_up_tokenization_spaces=False) == text
        # The bytes of each token, from the tokenizer's own ids of the 256 bytes and its merges of them.
        pieces = [byte_level_bytes(tokenizer, token_id) for token_id in tokens["token_id"]]
        assert b"".join(pieces) == text.encode()
        starts = np.cumsum([0, *(len(piece) for piece in pieces)])
        character_of = [i for i, character in enumerate(text) for _ in character.encode()]
        for row, start, end, piece in zip(tokens.itertuples(), starts, starts[1:], pieces, strict=False):
            assert (row.char_start, row.char_end) == (character_of[start], character_of[end - 1] + 1)
            try:
                assert row.token == piece.decode() == text[row.char_start : row.char_end]
            except UnicodeDecodeError:
                assert row.token == piece.decode(errors="backslashreplace")

    check()


def byte_level_bytes(tokenizer, token_id) -> bytes:
    """Return a token's bytes by transformers' own copy of GPT-2's table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(table[character] for character in tokenizer.convert_ids_to_tokens(int(token_id)))


def test_half_characters_are_shown_as_bytes(model):
    tokens = tokenize(model, ["a — 😀"])
    assert "".join(tokens["token"]) == r"a \xe2\x80\x94 \xf0\x9f\x98\x80" or "—" in tokens["token"].tolist()
    assert tokens["token"].tolist()[-1] == r"\x80"


def test_the_frame_is_as_the_schema_says(model):
    documents = read_corpus(
        pd.DataFrame({"doc": ["z", "none", "a"], "text": ["The cat", "", "sat on the mat. " * 3]})
    )
    tokens = tokenize(model, documents)
    assert {name: str(dtype) for name, dtype in tokens.dtypes.items()} == TOKEN_COLUMNS
    assert tokens["doc"].cat.categories.tolist() == [
        "z",
        "a",
    ]  # the corpus's order, and nobody who is not there
    with_spans = tokenize(model, documents, spans=True)
    assert [*with_spans] == [*TOKEN_COLUMNS, "char_start", "char_end"]
    pd.testing.assert_frame_equal(with_spans[[*TOKEN_COLUMNS]], tokens)


def test_nothing_that_the_tokenizer_was_set_to_leaks_in(tokenizer):
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    expected = tokenize(make_model(tokenizer), ["The cat sat.", "The"], spans=True)
    spoilt = copy.deepcopy(tokenizer)
    end = ("<|endoftext|>", tokenizer.bos_token_id)
    spoilt.backend_tokenizer.post_processor = Sequence(
        [
            ByteLevel(trim_offsets=True),
            TemplateProcessing(single=f"{end[0]} $A {end[0]}", special_tokens=[end]),
        ]
    )
    spoilt.pad_token = end[0]
    spoilt.padding_side = "left"
    spoilt.model_max_length = 2
    spoilt.backend_tokenizer.enable_padding(length=20, direction="left")
    spoilt.backend_tokenizer.enable_truncation(2)
    assert spoilt.backend_tokenizer.encode("The cat sat.").ids != bare_ids(tokenizer, "The cat sat.")
    before = spoilt.backend_tokenizer.to_str()
    pd.testing.assert_frame_equal(tokenize(make_model(spoilt), ["The cat sat.", "The"], spans=True), expected)
    assert spoilt.backend_tokenizer.to_str() == before
    once = tokenize(make_model(spoilt), ["The cat sat."], prepend_bos=True)
    assert once["token_id"].eq(end[1]).tolist() == [True] + [False] * (len(once) - 1)


@pytest.mark.parametrize("n_ctx", [4, 8])
def test_a_bos_that_is_there_is_not_doubled(n_ctx, model, tokenizer):
    text = "The cat sat on the mat."
    asked = tokenize(model, [text], prepend_bos=True, n_ctx=n_ctx, spans=True)
    twice = tokenize(model, ["<|endoftext|>" + text], prepend_bos=True, n_ctx=n_ctx, spans=True)
    columns = ["window", "position", "token_id", "token"]
    pd.testing.assert_frame_equal(twice[columns], asked[columns])
    is_bos = asked["token_id"] == tokenizer.bos_token_id
    assert is_bos.tolist() == asked["position"].eq(0).tolist()
    assert asked.loc[is_bos, ["token", "char_start", "char_end"]].drop_duplicates().values.tolist() == [
        ["<|endoftext|>", -1, -1]
    ]
    ids = pd.DataFrame(
        {"doc": ["text-0"], "token_ids": [[tokenizer.bos_token_id, *bare_ids(tokenizer, text)]]}
    )
    from_ids = tokenize(model, ids, prepend_bos=True, n_ctx=n_ctx)
    pd.testing.assert_frame_equal(from_ids[columns], asked[columns])


def test_without_being_asked_no_bos_is_added(model, tokenizer):
    tokens = tokenize(model, ["The cat sat on the mat."])
    assert not tokens["token_id"].eq(tokenizer.bos_token_id).any()
    own = tokenize(model, ["<|endoftext|>The cat"])
    assert own["token"].tolist()[0] == "<|endoftext|>"
    assert own["token_id"].eq(tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize("as_what", [list, tuple, np.array, lambda ids: np.array(ids, np.uint16)])
def test_token_ids_need_no_tokenizer(as_what):
    documents = pd.DataFrame(
        {"doc": [3, 4], "token_ids": [as_what(list(range(10))), as_what([])]}, index=[9, 9]
    )
    tokens = tokenize(make_model(None, n_ctx=4), documents)
    assert tokens["token_id"].tolist() == list(range(10))
    assert tokens["window"].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert tokens["token"].tolist()[:2] == ["[0]", "[1]"]
    assert tokens["doc"].unique().tolist() == ["3"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            pd.DataFrame({"doc": ["d"], "token_ids": [[1, 320]]}),
            "token id 320 of document 'd' .*vocabulary of 320",
        ),
        (pd.DataFrame({"doc": ["c", "d"], "token_ids": [[1], [1, -1]]}), "token id -1 of document 'd'"),
        (
            pd.DataFrame({"doc": ["d"], "token_ids": [[1.5]]}),
            "The token_ids of 'd' must be a list of whole numbers",
        ),
        (pd.DataFrame({"doc": ["d"], "token_ids": [[True]]}), "must be a list of whole numbers"),
        (pd.DataFrame({"doc": ["d"], "token_ids": [[[1], [1, 2]]]}), "must be a list of whole numbers"),
        (pd.DataFrame({"doc": ["d"], "token_ids": ["text"]}), "must be a list of whole numbers"),
        (pd.DataFrame({"doc": ["d"], "token_ids": [[2**70]]}), "must be a list of whole numbers"),
        (pd.DataFrame({"doc": ["d"], "token_ids": [[2**40]]}), f"token id {2**40} of document 'd'"),
        (pd.DataFrame({"doc": ["d", "d"], "token_ids": [[1], [2]]}), "Document ids must be unique"),
        (pd.DataFrame({"doc": ["d"], "token_ids": [[]]}), "No document has a token"),
        (pd.DataFrame({"token_ids": [[1]]}), "tokenize needs the column 'doc'"),
    ],
)
def test_token_ids_that_no_model_takes_are_refused(documents, message, model):
    with pytest.raises(InputError, match=message):
        tokenize(model, documents)


@pytest.mark.parametrize("n_ctx", [0, -1, 9, True, 2.0, "4"])
def test_windows_that_do_not_fit_are_refused(n_ctx, model):
    # TypeError: where the tests run under jaxtyping's checks, these say it first.
    with pytest.raises((InputError, TypeError), match="n_ctx"):
        tokenize(model, ["The cat."], n_ctx=n_ctx)


def test_a_context_of_one_token(tokenizer):
    one = make_model(tokenizer, n_ctx=1)
    tokens = tokenize(one, ["The cat sat."])
    assert tokens["position"].eq(0).all()
    assert tokens["window"].tolist() == list(range(len(tokens)))
    with pytest.raises(InputError, match="windows of at least 2 tokens"):
        tokenize(one, ["The cat sat."], prepend_bos=True)


def test_a_model_that_cannot_read_the_text_is_refused(tokenizer):
    with pytest.raises(
        InputError, match=r"no tokenizer.*load it with tokenizer=, or give a frame of doc and token_ids"
    ):
        tokenize(make_model(None), ["text"])
    with pytest.raises(MechregError, match="no-such-folder"):
        tokenize("no-such-folder/x/y", ["text"])
    with pytest.raises(InputError, match=r"of document 'text-0' is not in the model's vocabulary of 5"):
        tokenize(make_model(tokenizer, d_vocab=5), ["text"])
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    with pytest.raises(InputError, match="needs a tokenizer with a BOS token"):
        tokenize(make_model(plain), ["text"], prepend_bos=True)
    with pytest.raises(InputError, match="spans=True needs texts"):
        tokenize(make_model(None), pd.DataFrame({"doc": ["d"], "token_ids": [[1]]}), spans=True)


def test_documents_that_cannot_be_used_are_reported_by_id_and_nothing_is_printed(model, caplog, capsys):
    rows = {"doc": ["fine", "void", "blank", "half", "single"], "text": ["The cat", "", " ", "\ud800", "x"]}
    documents = read_corpus(pd.DataFrame(rows, dtype=object))
    with caplog.at_level(logging.WARNING, logger="mechreg"):
        tokens = tokenize(model, documents)
    assert [record.getMessage() for record in caplog.records] == [
        "3 documents cannot be read and are left out: void, blank, half",
        "1 documents have one token, so no lag: single",
    ]
    assert capsys.readouterr().out == ""
    assert tokens["doc"].unique().tolist() == ["fine", "single"]
    expected = [["void", "empty"], ["blank", "whitespace"], ["half", "undecodable"], ["single", "one token"]]
    assert corpus_problems(documents, tokens).values.tolist() == expected
    with_bos = tokenize(model, documents, prepend_bos=True)
    assert corpus_problems(documents, with_bos, prepend_bos=True).values.tolist() == expected
    assert ["fine", "no token"] in corpus_problems(documents, tokens[tokens["doc"] != "fine"]).values.tolist()


def test_a_document_that_becomes_no_token_is_reported(tokenizer, caplog):
    from tokenizers.normalizers import Strip

    stripping = copy.deepcopy(tokenizer)
    stripping.backend_tokenizer.normalizer = Strip()
    documents = read_corpus(["The cat", "x"]).assign(text=["The cat", "  "])
    tokens = tokenize(make_model(stripping), documents)
    assert corpus_problems(documents, tokens).values.tolist() == [["text-1", "no token"]]
    assert "1 documents have no token and are left out: text-1" in caplog.text


def test_corpus_problems_needs_its_columns():
    with pytest.raises(SchemaError, match="corpus_problems needs the column 'problem'"):
        corpus_problems(pd.DataFrame({"doc": ["a"]}))


def test_a_slow_tokenizer():
    from transformers import ByT5Tokenizer  # bytes, in Python, from no file

    slow = make_model(ByT5Tokenizer(), d_vocab=400)
    tokens = tokenize(slow, ["cat sat on"], n_ctx=4)
    assert tokens["token_id"].tolist() == [byte + 3 for byte in b"cat sat on"]
    assert "".join(tokens["token"]) == "cat sat on"
    with pytest.raises(InputError, match="spans=True needs a fast tokenizer"):
        tokenize(slow, ["cat"], spans=True)


def test_tokens_of_a_sentencepiece_are_readable_too():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁the", "▁", "c", "a", "t", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokens = tokenize(make_model(PreTrainedTokenizerFast(tokenizer_object=bpe)), ["cat é\n"])
    assert tokens["token"].tolist() == [" ", "c", "a", "t", " ", r"\xc3", r"\xa9", "\n"]


def test_ids_and_pieces_outside_the_vocabulary_are_shown(tokenizer):
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["naïve"])  # stored as it is, not as bytes
    model = make_model(grown, d_vocab=1000)
    documents = pd.DataFrame({"doc": ["d"], "token_ids": [[999, grown.convert_tokens_to_ids("naïve")]]})
    assert tokenize(model, documents)["token"].tolist() == ["[999]", "naïve"]
    assert tokenize(model, ["a naïve cat"], spans=True)["token"].tolist().count("naïve") == 1


def test_the_tokenizer_of_the_miniatures_reads_the_demo():
    from transformers import PreTrainedTokenizerFast

    small = PreTrainedTokenizerFast.from_pretrained(miniatures.folder("mini-s"))
    tokens = tokenize(make_model(small, n_ctx=256, d_vocab=len(small)), "demo")
    texts = read_corpus("demo").set_index("doc")["text"]
    assert tokens["doc"].cat.categories.tolist() == texts.index.tolist()
    for doc, rows in tokens.groupby("doc", observed=True):
        assert rows["token_id"].tolist() == bare_ids(small, texts[doc])
        assert small.decode(rows["token_id"], clean_up_tokenization_spaces=False) == texts[doc]


@needs_shared
def test_the_paragraph_of_the_seed_has_95_tokens():
    from transformers import GPT2TokenizerFast

    gpt2 = make_model(GPT2TokenizerFast.from_pretrained(SHARED / "gpt2-tokenizer"), n_ctx=1024, d_vocab=50257)
    documents = read_corpus(SHARED / "seed" / "hungarian_rock.txt")
    text = documents["text"][0]
    tokens = tokenize(gpt2, documents, spans=True)
    assert (len(text), len(tokens)) == (428, 95)
    assert tokens["token"].tolist()[:3] == ["Hung", "arian", " rock"]
    assert tokens["token_id"].tolist()[2] == 3881
    assert "".join(tokens["token"]) == text
    assert [text[a:b] for a, b in zip(tokens["char_start"], tokens["char_end"], strict=True)] == tokens[
        "token"
    ].tolist()
    assert len(tokenize(gpt2, documents, prepend_bos=True)) == 96


# --------------------------------------------------------------------------------------------- tokenizers that draw


def test_a_tokenizer_that_draws_is_refused(tokenizer):
    drawing = copy.deepcopy(tokenizer)
    drawing.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(InputError, match=r"BPE dropout of 0\.1.*dropout = None"):
        tokenize(make_model(drawing), ["A cat sat."])
    drawing.backend_tokenizer.model.dropout = 0.0
    assert len(tokenize(make_model(drawing), ["A cat sat."]))
    sampling = SimpleNamespace(sp_model_kwargs={"enable_sampling": True, "alpha": 0.1})
    with pytest.raises(InputError, match="sp_model_kwargs has enable_sampling"):
        tokenize(make_model(sampling), ["A cat sat."])


def test_texts_and_ids_together_are_refused(model):
    both = pd.DataFrame({"doc": ["a"], "text": ["A cat."], "token_ids": [[1, 2]]})
    with pytest.raises(InputError, match="both 'text' and 'token_ids'; drop or rename"):
        tokenize(model, both)
