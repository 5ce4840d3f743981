"""The frozen trunk: a stage's lowest blocks, run without autograd, their output kept or not."""

from fastgrow.growth.trunk.settings import Trunk

__all__ = ["Trunk"]
