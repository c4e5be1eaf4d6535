"""The index of names on the reference's page, and llms.txt, both made from the pages and the docstrings.

mkdocs runs the hooks below; `python docs/index_of_names.py` writes docs/llms.txt anew.
"""

import ast
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LLMS = DOCS / "llms.txt"
MARK = "<!-- the index of names -->"
Definition = ast.FunctionDef | ast.ClassDef


def pages_of_names() -> dict[str, list[str]]:
    """Return the pages of the reference, in the order of the site, and the places of the names that each documents."""
    listed = {}
    for _, page in pages_of_site():
        if page.startswith("reference/"):
            listed[page] = re.findall(
                r"^::: mechreg\.(.+\..+)$", (DOCS / page).read_text("utf-8"), re.MULTILINE
            )
    return listed


def pages_of_site() -> list[tuple[str, str]]:
    """Return the title and the path of every page, in the order of the site's menu."""
    config = re.sub(r"!!python/name:\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    entries = [(title, to) for entry in yaml.safe_load(config)["nav"] for title, to in entry.items()]
    found = []
    while entries:
        title, to = entries.pop(0)
        if isinstance(to, str):
            found.append((title, to))
        else:
            entries = [pair for entry in to for pair in entry.items()] + entries
    return found


@cache
def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text("utf-8"))


def room_and_name(place: str) -> tuple[str, str]:
    """Return the parts of a place; a function in a file of its own name is listed with the file, as `a.b.b`."""
    parts = place.split(".")
    return parts[0], parts[-1]


def definition(place: str) -> Definition:
    """Return the syntax tree of a name's function or class, which any file of its room may hold."""
    room, name = room_and_name(place)
    source = ROOT / "mechreg" / room
    for file in sorted(source.glob("*.py")) if source.is_dir() else [source.with_suffix(".py")]:
        for node in parsed(file).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return node
    raise LookupError(f"mechreg.{place}, which the reference lists, is defined nowhere in its room.")


def sentence(node: Definition) -> str:
    """Return the first line of a docstring."""
    return (ast.get_docstring(node) or "").split("\n")[0].replace("``", "`")


def signature(node: Definition) -> str:
    """Return how a function or a dataclass is called, without types; of what only mechreg makes the name."""
    if isinstance(node, ast.FunctionDef):
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return f"{node.name}({re.sub(r'^(self|cls)(, )?', '', ast.unparse(node.args))})"
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and _is_given(part)]
    if not node.decorator_list or any(ast.unparse(field.target).startswith("_") for field in fields):
        return node.name
    values = (ast.unparse(f.target) + (f"={ast.unparse(f.value)}" if f.value else "") for f in fields)
    return f"{node.name}({', '.join(values)})"


def _is_given(field: ast.AnnAssign) -> bool:
    """Return whether a dataclass takes a field as an argument."""
    value = ast.unparse(field.value) if field.value else ""
    return "ClassVar" not in ast.unparse(field.annotation) and "init=False" not in value


def methods(node: Definition) -> list[ast.FunctionDef]:
    """Return the public methods and properties of a class."""
    found = node.body if isinstance(node, ast.ClassDef) else []
    return [part for part in found if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]


def public_name(place: str) -> str:
    """Return how a place is written after `import mechreg as mr`."""
    room, name = room_and_name(place)
    stub = (ROOT / "mechreg" / "__init__.pyi").read_text("utf-8")
    return f"mr.{name}" if f" import {name} as {name}\n" in stub else f"mechreg.{room}.{name}"


def title_and_sentence(page: str) -> tuple[str, str]:
    """Return a page's heading and the first sentence under it, without its links."""
    text = re.sub(r"\]\([^)]*\)", "]", (DOCS / page).read_text("utf-8")).replace("**", "")
    heading, first = re.match(r"# (.+)\n+((?:.+\n)+)", text).groups()
    plain = " ".join(first.replace("[", "").replace("]", "").split())
    return heading, re.split(r"(?<=[.?:]) ", plain)[0].rstrip(":")


def index_of_names() -> str:
    """Return the index as Markdown: a list a page of the reference, then all names in the order of the alphabet."""
    lines, links = [], []
    for page, places in pages_of_names().items():
        lines += [f"## [{title_and_sentence(page)[0]}]({page})", ""]
        for place in places:
            lines.append(f"- [`{public_name(place)}`]({page}#mechreg.{place}): {sentence(definition(place))}")
            links.append((room_and_name(place)[1], f"{page}#mechreg.{place}"))
        lines.append("")
    in_order = sorted(links, key=lambda link: link[0].lower())
    names = " · ".join(f"[`{name}`]({link})" for name, link in in_order)
    return "\n".join([*lines, "## By the alphabet", "", names])


def llms_text() -> str:
    """Return llms.txt: what mechreg is, its pages with a sentence each, and how every name is called."""
    about = title_and_sentence("index.md")[1]
    lines = ["# mechreg", "", f"> {about}", ""]
    lines += [
        "After `import mechreg as mr`; options are keyword-only, frames go in and new frames come out.",
        "",
    ]
    lines += ["## Pages", ""]
    for title, page in pages_of_site():
        if not page.startswith("reference"):
            lines.append(f"- [{title}]({page}): {title_and_sentence(page)[1]}")
    for page, places in pages_of_names().items():
        lines += ["", f"## {title_and_sentence(page)[0]}", ""]
        for place in places:
            node = definition(place)
            called = public_name(place).rsplit(".", 1)[0] + "." + signature(node)
            lines.append(f"- `{called}`: {sentence(node)}")
            for method in methods(node):
                is_property = any("property" in ast.unparse(decorator) for decorator in method.decorator_list)
                called = method.name if is_property else signature(method)
                lines.append(f"  - `.{called}`: {sentence(method)}")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the index where a page marks its place."""
    return markdown.replace(MARK, index_of_names()) if MARK in markdown else markdown


def on_post_build(config: Any) -> None:
    """Put the pages as Markdown beside those as HTML: llms.txt links to them."""
    for _, page in pages_of_site():
        shutil.copyfile(DOCS / page, Path(config["site_dir"]) / page)


if __name__ == "__main__":
    LLMS.write_text(llms_text(), encoding="utf-8")
