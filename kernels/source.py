"""Source as a text that says what it computes, and nothing else."""

from __future__ import annotations

import ast

# They say nothing about what is computed, or are not there in every version of Python.
NOT_COUNTED = ("ctx", "kind", "type_comment", "type_params")


def text_of(node: object) -> str:
    """As `ast.dump`, whose text differs from one version of Python to another."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={text_of(value)}"
            for name, value in ast.iter_fields(node)
            if name not in NOT_COUNTED and value is not None and value != []
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(text_of, node))}]"
    return repr(node)
