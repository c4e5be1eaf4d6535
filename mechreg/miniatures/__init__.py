"""The miniatures: five small trained GPT-2s and a demo corpus that ship with the package."""

from pathlib import Path

NAMES = ("mini-s", "mini-m", "mini-l", "mini-s-b", "mini-m-b")
DEMO_CORPUS = Path(__file__).parent / "demo.jsonl"
DEMO_TAGS = Path(__file__).parent / "demo_tags.jsonl"  # words and their tags, by a recorded pipeline
HAND_TAGS = Path(__file__).parent / "demo_hand_tags.tsv"  # some of them again, read by hand
DEMO_SPEC = Path(__file__).parent / "demo.toml"


def folder(name: str) -> Path:
    """Return the Hugging Face folder of a miniature: config, float16 safetensors and tokenizer.

    Examples
    --------
    >>> folder("mini-s").name
    'mini-s'
    """
    if name not in NAMES:
        raise ValueError(f"There is no miniature {name!r}; there are {', '.join(NAMES)}.")
    return Path(__file__).parent / name
