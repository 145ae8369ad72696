"""Change a few numbers in a YAML config and not a byte besides: comments, order, quotes and line ends stay."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pmf.errors import UserError
from pmf.files import complete_or_absent


def read_exactly(path: Path) -> str:
    """A config's text with its line ends as they are."""
    return path.read_bytes().decode()


def write_exactly(path: Path, text: str) -> None:
    """Replace a config: whoever reads it, at any time and after any crash, finds the old text or the new one.

    A link stays a link, and the file keeps its permissions.
    """
    target = path.resolve()
    with complete_or_absent(target) as temporary:
        temporary.write_bytes(text.encode())
        shutil.copymode(target, temporary)


def with_numbers(text: str, numbers: Mapping[str, int], where: str) -> str:
    """The text of a config with other numbers in it.

    Args:
        text: a valid config.
        numbers: by ``section.key``. A key or section that is missing is added, in the style that it finds.
        where: names the config in errors.

    Raises:
        UserError: the text is written in a way that this cannot change (anchors, for example).
    """
    edited, expected = text, copy.deepcopy(_plain(text))
    for dotted, number in numbers.items():
        section, key = dotted.split(".")
        edited = _with_number(edited, section, key, str(number))
        expected[section] = {**(expected.get(section) or {}), key: str(number)}
    if _plain(edited) != expected:
        wanted = ", ".join(f"{key}: {number}" for key, number in numbers.items())
        raise UserError(f"{where}: cannot be changed without rewriting it; write these yourself: {wanted}")
    return edited


def _plain(text: str) -> dict[str, Any]:
    """Every scalar as the characters that stand there; not {} but None for a document that is no mapping."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader) or {}  # makes strings, lists and dicts only
    except yaml.YAMLError:
        return {"": "not YAML"}


def _with_number(text: str, section: str, key: str, number: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    newline = "\r\n" if "\r\n" in text else "\n"
    entry = _entry(root, section)
    if entry is None:
        if isinstance(root, yaml.MappingNode) and root.flow_style:
            return _into_flow_mapping(text, root, f"{section}: {{{key}: {number}}}")
        margin = " " * (root.start_mark.column if root is not None else 0)
        last = "" if not text or text.endswith("\n") else newline
        end = newline if not last else ""
        return f"{text}{last}{margin}{section}:{newline}{margin}  {key}: {number}{end}"
    section_key, values = entry
    if not isinstance(values, yaml.MappingNode):  # a section with nothing in it
        return _replace(text, values, f"{{{key}: {number}}}")
    found = _entry(values, key)
    if found is not None:
        return _replace(text, found[1], number)
    if values.flow_style:
        return _into_flow_mapping(text, values, f"{key}: {number}")
    # Below the batch size that is there, or else first: comments stay with the keys that they stand above.
    neighbour = _entry(values, "global_batch_size")
    above = neighbour[1].end_mark.index if neighbour else section_key.end_mark.index
    line_end = text.find("\n", above)
    margin = " " * values.start_mark.column
    if line_end < 0:
        return f"{text}{newline}{margin}{key}: {number}"
    return f"{text[: line_end + 1]}{margin}{key}: {number}{newline}{text[line_end + 1 :]}"


def _entry(mapping: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = mapping.value if isinstance(mapping, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _replace(text: str, node: yaml.Node, new: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    space = "" if start < end else " "  # nothing stands after the colon
    return text[:start] + space + new + text[end:]


def _into_flow_mapping(text: str, mapping: yaml.MappingNode, entry: str) -> str:
    start = mapping.start_mark.index + 1
    return f"{text[:start]}{entry}{', ' if mapping.value else ''}{text[start:]}"
