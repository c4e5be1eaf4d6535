"""The names of this room: what is loaded on first use, so that a wrong path is refused before torch is imported."""

from .backends import hooked_transformer_class as hooked_transformer_class
from .describing import ModelDescription as ModelDescription
from .describing import describe_model as describe_model
from .fused import fused as fused
from .identity import HOOK_POINTS as HOOK_POINTS
from .identity import LoadRecord as LoadRecord
from .identity import input_device as input_device
from .identity import is_bridge as is_bridge
from .identity import is_transformer_lens_model as is_transformer_lens_model
from .identity import record_of as record_of
from .identity import special_ids as special_ids
from .identity import tokenizer_hash as tokenizer_hash
from .identity import weight_hash as weight_hash
from .loading import config_of as config_of
from .loading import load_model as load_model
from .loading import load_reference as load_reference
from .loading import model_label as model_label
from .loading import require_loadable as require_loadable
from .placing import DeviceMap as DeviceMap
from .protocol import Model as Model
from .verifying import load_tolerance as load_tolerance
from .verifying import relative_difference as relative_difference
