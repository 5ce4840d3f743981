"""The feed-forward layer `mlp` and its activations."""

from fastgrow.ops.feed_forward.call import ACTIVATIONS, mlp
from fastgrow.ops.feed_forward.reference import activate

__all__ = ["ACTIVATIONS", "activate", "mlp"]
