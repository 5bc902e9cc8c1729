"""The table of codecs: a name -> the constructor of a Codec."""

from parallel.codec import identity
from parallel.power_sgd import power_sgd
from parallel.quantise import bfloat16, int4, int8, majority_vote, sign, ternary
from parallel.sparse import deep_gradient_compression, random_k, top_k

CODECS = {
    "identity": identity,
    "bfloat16": bfloat16,
    "int8": int8,
    "int4": int4,
    "ternary": ternary,
    "sign": sign,
    "majority_vote": majority_vote,
    "top_k": top_k,
    "random_k": random_k,
    "deep_gradient_compression": deep_gradient_compression,
    "power_sgd": power_sgd,
}
