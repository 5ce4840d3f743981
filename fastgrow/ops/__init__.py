"""Operations: one file each, with the formula, the eager reference and the faster implementations.

Plain tensors in and out. Every public function takes `impl=` to force an implementation;
`use_impl` does so for a block of code and FASTGROW_IMPL for a process.
"""

from fastgrow.ops._dispatch import explain_all, use_impl

__all__ = ["explain_all", "use_impl"]
