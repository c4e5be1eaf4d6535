"""mechreg: how much of the attention update to a token is predicted by the updates to the tokens before it.

Every public name is loaded on first use, so that ``import mechreg`` costs nothing and a notebook that only
reads frames never imports torch. ``__init__.pyi`` lists them.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
