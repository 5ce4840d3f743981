"""Hooks of MkDocs: pages generated from the code, and links to files of the repository.

The page of the command line is generated from the commands, that of the configuration from the
settings dataclasses. A link out of `docs/`, such as to a result file, is replaced by a link to a
copy of the file in the site. After the build, every public name must be in the reference.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import posixpath
import re
import subprocess
import sys
import types
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")
COPIES = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the changelog and the files of the repository that pages link to."""
    pages = {
        "reference/command_line.md": command_line(),
        "reference/configuration.md": configuration(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for page in files.documentation_pages():
        for _, target in LINK.findall(page.content_string):
            path = outside(page.src_uri, target)
            uri = f"{COPIES}/{path}"
            if path and (ROOT / path).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of `docs/` to the copies."""

    def replaced(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        if files.get_file_from_path(f"{COPIES}/{path}") is None:
            raise PluginError(f"{page.file.src_uri}: {match[2]} is no file of the repository")
        here = posixpath.dirname(page.file.src_uri) or "."
        return match[1] + posixpath.relpath(f"{COPIES}/{path}", here)

    return LINK.sub(replaced, markdown)


def outside(page: str, target: str) -> str | None:
    """The path in the repository of a link that leads out of `docs/`; None of one that does not."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "../")) else path


# -- pages from the code -----------------------------------------------------------------------


def command_line() -> str:
    """The help of every command."""
    return subprocess.run(
        [sys.executable, "-m", "typer", "fastgrow.cli.app", "utils", "docs", "--name", "fastgrow",
         "--title", "Command line"],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "TERMINAL_WIDTH": "100"},
    ).stdout  # fmt: skip


def configuration() -> str:
    """Every key of the configuration files, from the settings dataclasses and their docstrings."""
    from fastgrow.cli.settings import RECIPES, GrowthSettings, shipped_configs
    from fastgrow.demo import DemoSettings
    from fastgrow.growth import GrowthSchedule
    from fastgrow.study import StudySettings

    lines = [CONFIGURATION]
    seen: set[type] = set()
    for title, root in (
        ("fastgrow grow, plan, doctor", GrowthSettings),
        ("fastgrow study", StudySettings),
        ("fastgrow demo", DemoSettings),
    ):
        lines.append(f"## `{title}`\n")
        for kind in reachable(root):
            if kind not in seen:
                seen.add(kind)
                lines.extend(settings_table(kind))
    lines.append("## Recipes of a schedule\n")
    lines.append(
        "`schedule: {RECIPE: {…}}` takes the arguments of the recipe's method. "
        "A study's file lists stages instead.\n"
    )
    lines.extend(recipe(getattr(GrowthSchedule, name)) for name in RECIPES)
    lines.append("\n## Shipped configurations\n")
    lines.append("A configuration that ships with the package is used by its name:\n")
    for command, kind in (("fastgrow grow", ""), ("fastgrow study", "studies")):
        paths = shipped_configs(kind).values()
        # The demo's are chosen by `fastgrow demo` and its option `--quick`.
        lines.extend(shipped(p, command) for p in paths if not p.stem.startswith("demo"))
    return "\n".join(lines) + "\n"


CONFIGURATION = """# Configuration files

A configuration is a YAML or TOML file. `fastgrow grow`, `plan` and `doctor` read one kind of file;
`fastgrow study` and `fastgrow demo` read two others. Any value can be changed on the command
line by its path: `fastgrow grow run.yaml train.lr=1e-3 data.0.weight=0.5`. An unknown key is an
error that names the most similar known key. Keys without a default are required. `None` in a
description is `null` in YAML; in TOML, omit the key.
"""


def recipe(method: Callable[..., Any]) -> str:
    """A recipe with its arguments and their defaults, as a list item."""
    arguments = ", ".join(
        name if given.default is given.empty else f"{name}={given.default!r}"
        for name, given in inspect.signature(method).parameters.items()
    )
    path = f"fastgrow.growth.GrowthSchedule.{method.__name__}"
    return f"- [`{method.__name__}`][{path}]: `{arguments}`"


def shipped(path: Path, command: str) -> str:
    """A shipped configuration with its first comment, as a list item."""
    comment = re.match(r"(?:# .*\n)+", path.read_text(encoding="utf-8"))
    text = " ".join(comment[0].replace("# ", "").split()) if comment else ""
    return f"- `{command} {path.stem}`: {text}"


def reachable(kind: Any) -> Iterator[type]:
    """A settings dataclass and those that its fields hold, each before those below it."""
    if dataclasses.is_dataclass(kind):
        yield typing.cast(type, kind)
        for hint in typing.get_type_hints(kind).values():
            yield from reachable(hint)
    elif typing.get_args(kind):
        for part in typing.get_args(kind):
            yield from reachable(part)
    elif inspect.isclass(kind) and kind.__module__.startswith("fastgrow."):
        # A plain base class stands for the dataclasses below it.
        for below in kind.__subclasses__():
            yield from reachable(below)


def settings_table(kind: Any) -> list[str]:
    """The keys of one dataclass, as a Markdown section."""
    hints = typing.get_type_hints(kind, include_extras=True)
    summary, meaning = documented(kind)
    lines = [
        f"### {kind.__name__}\n",
        summary,
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        cells = (
            f"`{field.name}`",
            shown(hints[field.name]),
            "the substrate's" if field.name == "vocab_size" else default(field),
            " ".join(meaning.get(field.name, "").split()),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def documented(kind: type) -> tuple[str, dict[str, str]]:
    """The text of a class's docstring before its sections, and what it says of each field."""
    summary, *sections = re.split(
        r"^(?:Attributes|Args):\n", inspect.getdoc(kind) or "", flags=re.M
    )
    meaning: dict[str, str] = {}
    for section in sections:
        # An item begins at the first indent; "a, b: …" documents two fields.
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n      .*)*)", section, re.M):
            meaning |= dict.fromkeys(names.split(", "), text)
    return summary, meaning


def default(field: dataclasses.Field[Any]) -> str:
    """The default as it is written in YAML."""
    if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(field.default):
        return f"`{json.dumps(field.default, ensure_ascii=False)}`"
    required = field.default is field.default_factory is dataclasses.MISSING
    return "required" if required else "its defaults"


def shown(hint: Any) -> str:
    """A type as a reader of YAML sees it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([shown(parts[0]), *(limits(extra) for extra in parts[1:])])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(shown(part) for part in parts)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if hint is type(None):
        return "null"
    if hint is Any:
        return "any value"
    if origin in (dict, Mapping):
        return f"mapping of {shown(parts[0])} to {shown(parts[1])}"
    if origin is tuple and ... not in parts and len(set(parts)) == 1:
        return f"list of {len(parts)} values, each: {shown(parts[0])}"
    if origin is not None:
        inside = ", ".join(shown(part) for part in parts if part is not ...)
        return f"{NAMES.get(origin, getattr(origin, '__name__', str(origin)))} of {inside}"
    if hint.__module__.startswith("fastgrow."):
        kinds = [hint] if dataclasses.is_dataclass(hint) else hint.__subclasses__()
        return " or ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in kinds)
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping"}
NAMES |= {list: "list", tuple: "list", Sequence: "list", Mapping: "mapping"}


def limits(extra: Any) -> str:
    """Return the range of a `msgspec.Meta`; without the limit that only excludes infinity."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [(sign, getattr(extra, name, None)) for name, sign in signs.items()]
    return ", ".join(
        f"{sign} {limit}"
        for sign, limit in found
        if limit is not None and abs(limit) != sys.float_info.max
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a public name of the package is on no page of the reference."""
    inventory = (Path(config.site_dir) / "objects.inv").read_bytes()
    entries = zlib.decompress(inventory[inventory.index(b"zlib.\n") + 6 :]).decode().splitlines()
    documented = {entry.split()[0] for entry in entries}
    missing = [
        name
        for package in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for name in public_names(f"fastgrow.{package.stem}")
        # A function that has its module's name is documented below that module.
        if name not in documented and f"{name}.{name.split('.')[-1]}" not in documented
    ]
    if missing:
        raise PluginError(f"public names without a docstring or a page: {', '.join(missing)}")


def public_names(module: str) -> list[str]:
    """Where the public names of a module are defined or exported from."""
    if module == "fastgrow.fastgrow":
        module = "fastgrow"
    exported = getattr(importlib.import_module(module), "__all__", [])
    return [f"{module}.{name}" for name in exported]
