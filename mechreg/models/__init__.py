"""Models: load one, look at it, and know what was loaded; the only module that imports TransformerLens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
