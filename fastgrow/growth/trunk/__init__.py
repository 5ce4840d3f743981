"""The frozen trunk: a stage's lowest blocks, run without autograd, with or without a cache.

`TrunkEngine.begin` (engine.py) prepares a stage. `ActivationCache.for_stage` (cache.py) decides
whether and where to cache (placement.py, with costs measured by costs.py); `CacheWriter` and
`CachedBatches` (activations.py) write and read the activations of a `FrozenTrunk` (frozen.py) in
a store (stores.py).
"""

from fastgrow.growth.trunk.settings import Trunk

__all__ = ["Trunk"]
