"""mechreg: how much of the attention update to a token is predicted by the updates to the tokens before it.

Every public name is loaded on first use, so that ``import mechreg`` costs nothing and a notebook that only
reads frames never imports torch. ``__init__.pyi`` lists them.
"""

import lazy_loader

__version__ = "0.2.0"
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return _load(name)
    from mechreg.schema import did_you_mean

    hint = (
        "" if name.startswith("__") else did_you_mean(name, __all__)
    )  # Python itself asks for __path__ and others
    raise AttributeError(f"mechreg has no {name!r}.{hint}")
