"""Check: is every number of this model the one that raw Hugging Face hooks give, batched or not?"""

from mechreg.check.contract import check_model
from mechreg.check.yardstick import PARTS, Addition, Parts, addition_of, blocks_of, hugging_face_norms

__all__ = ["PARTS", "Addition", "Parts", "addition_of", "blocks_of", "check_model", "hugging_face_norms"]
