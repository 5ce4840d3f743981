"""Rotary position embedding: `rope` and its table."""

from fastgrow.ops.rotary.call import RopeTable, rope, rope_table

__all__ = ["RopeTable", "rope", "rope_table"]
