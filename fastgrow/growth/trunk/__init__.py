"""The frozen trunk: the lowest blocks of a stage, run without autograd, their output kept or not."""

from fastgrow.growth.trunk.settings import Trunk

__all__ = ["Trunk"]
