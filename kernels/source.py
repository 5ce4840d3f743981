"""Text of an AST that depends only on what the source computes."""

from __future__ import annotations

import ast

# Fields that do not affect the computation or do not exist in every version of Python.
NOT_COUNTED = ("ctx", "kind", "type_comment", "type_params")


def text_of(node: object) -> str:
    """Return the text of a node, like `ast.dump` but the same in all versions of Python."""
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
