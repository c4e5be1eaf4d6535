"""Every page of the documentation: its code runs, shows what is printed, and the site builds without a warning.

Blocks of a page run one after the other in one namespace and one empty folder: python, toml (written to the file
that its first line names), and the lines of sh that begin with mechreg. A text block that follows code is what the
code prints, a pytb block the error with which it is refused (... stands for any words). A call of mechreg within the
text, such as `mr.plot_betas(fits)`, runs too, at its place.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import index_of_names
import pytest
from public import ROOM_OF

import mechreg
from mechreg.cli import main
from mechreg.schema import MechregError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# The whole demo, whole runs with all that can follow them, and passes by the dozen.
SLOW = {
    "index.md",
    "command-line.md",
    "how-to/large-corpora.md",
    "how-to/parts-of-speech.md",
}
CODE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$|`(mr\.\w+\([^`]*\))`", flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the code of a page's blocks, and as "call" the whole calls of mechreg in its text."""
    found = []
    for language, code, call in CODE.findall(page.read_text(encoding="utf-8")):
        if call and "..." not in call:
            found.append(("call", " ".join(call.split())))
        elif not call:
            found.append((language, code))
    return found


def printed_by(code: str, page: Path, names: dict) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name_of(page), "exec"), names)
    return out.getvalue()


def refusal_of(code: str, page: Path, names: dict) -> str:
    with pytest.raises(MechregError) as refused:
        printed_by(code, page, names)
    return f"{refused.typename}: {refused.value}"


def pattern_of(shown: str) -> str:
    """Return the pattern of an error as a page shows it: its lines are one, and ... is any words."""
    return ".*".join(re.escape(" ".join(part.split())) for part in shown.split("..."))


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if name_of(p) in SLOW else p for p in PAGES],
    ids=name_of,
)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    printed = None
    refusal = ""
    found = blocks(page)
    for (language, code), (following, _) in zip(found, [*found[1:], ("", "")], strict=False):
        if language == "call":
            eval(code, names)
        elif language == "python" and following == "pytb":
            refusal = refusal_of(code, page, names)
        elif language == "pytb":
            assert re.fullmatch(pattern_of(code), refusal), refusal
            refusal = ""
        elif language == "python":
            printed = printed_by(code, page, names)
        elif language == "text":
            assert printed is not None, "a text block that no code prints"
            shown, got = ([line.rstrip() for line in text.strip().splitlines()] for text in (code, printed))
            assert got == shown, code
            printed = None
        elif language == "toml":
            (tmp_path / code.split()[1]).write_text(code, encoding="utf-8")
        elif language == "sh":
            for line in code.splitlines():
                # Lines of other programs would not be run: a page has none.
                assert line == "mechreg" or line.startswith("mechreg "), line
                assert main(shlex.split(line)[1:]) == 0, line
        else:
            pytest.fail(f"a block of {language or 'no language'} that nothing checks")


def test_there_are_pages_with_code():
    assert sum(language == "python" for page in PAGES for language, _ in blocks(page)) > 20


def test_every_public_name_is_in_the_reference():
    listed = [place for places in index_of_names.pages_of_names().values() for place in places]
    assert len(set(listed)) == len(listed)
    places = {index_of_names.room_and_name(place) for place in listed}
    assert {(room.split(".")[0], name) for name, room in ROOM_OF.items()} <= places
    for room, name in places:  # those of a room too
        assert hasattr(importlib.import_module(f"mechreg.{room}"), name), name
    for place in listed:  # as mkdocstrings looks for them
        module, _, name = f"mechreg.{place}".rpartition(".")
        assert hasattr(importlib.import_module(module), name), place


def test_links_to_names_lead_to_their_pages():
    pages = {(DOCS / name).resolve(): places for name, places in index_of_names.pages_of_names().items()}
    for page in PAGES:
        links = re.findall(r"\]\(([\w./-]+)#mechreg\.([\w.]+)\)", page.read_text(encoding="utf-8"))
        for target, place in links:
            assert place in pages.get((page.parent / target).resolve(), []), f"{name_of(page)}: {target}"


def test_the_page_for_language_models_is_in_step():
    """The command `python docs/index_of_names.py` writes it anew."""
    assert index_of_names.LLMS.read_text(encoding="utf-8") == index_of_names.llms_text()


def test_the_index_links_to_every_name_and_says_what_it_is():
    index = index_of_names.index_of_names()
    assert (
        "[`mr.fit_lagged`](reference/regression.md#mechreg.regression.fit_lagged): Return the least-" in index
    )
    assert re.findall(r"^- .*: ?$", index, flags=re.MULTILINE) == []


def test_the_installation_page_names_the_extras_and_pythons_of_the_package():
    page = (DOCS / "installation.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)[:-2] == list(
        project["optional-dependencies"]
    )
    pythons = [name.rsplit(" ", 1)[1] for name in project["classifiers"] if "Python :: 3." in name]
    assert f"Python {', '.join(pythons[:-1])} or {pythons[-1]}" in page


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mechreg.__version__ == project["version"]
    assert f"\nversion: {mechreg.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest.group(1) == mechreg.__version__


class Loads(HTMLParser):
    """The addresses that a page loads by itself: not its links."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        loading = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
        if (
            tag in loading
            and given.get(loading[tag])
            and given.get("rel") not in ("canonical", "next", "prev")
        ):
            self.found.append(given[loading[tag]])


def site_tools_are_missing() -> bool:
    return any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings"))


@pytest.mark.skipif(site_tools_are_missing(), reason="mkdocs is not installed here; make docs installs it")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(tmp_path / "site").as_posix(): path for path in (tmp_path / "site").rglob("*.html")
    }
    assert {name_of(page).replace(".md", ".html") for page in PAGES} <= set(pages)
    for name, path in pages.items():
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        assert loads.found
        assert [address for address in loads.found if re.match(r"(https?:)?//", address)] == [], name
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), (
            style
        )


def test_code_fits_its_column():
    """docs/style.css has room for 96 characters on a laptop."""
    lines = [
        (name_of(page), line) for page in PAGES for _, code in blocks(page) for line in code.splitlines()
    ]
    assert [(name, line) for name, line in lines if len(line) > 96] == []
