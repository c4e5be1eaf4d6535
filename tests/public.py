"""The public names and the rooms that have them, as the stub lists them."""

import ast
from pathlib import Path

import mechreg

_STUB = Path(mechreg.__file__).with_suffix(".pyi")
ROOM_OF = {
    alias.name: node.module
    for node in ast.parse(_STUB.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
