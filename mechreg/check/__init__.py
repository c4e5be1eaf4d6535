"""Check: is every number of this model the one that raw Hugging Face hooks give, batched or not?"""

from mechreg.check.contract import check_model as check_model
from mechreg.check.yardstick import PARTS as PARTS
from mechreg.check.yardstick import Addition as Addition
from mechreg.check.yardstick import Parts as Parts
from mechreg.check.yardstick import addition_of as addition_of
from mechreg.check.yardstick import blocks_of as blocks_of
from mechreg.check.yardstick import hugging_face_norms as hugging_face_norms
