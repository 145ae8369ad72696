"""Configs on disk: strict YAML with line numbers, ``key=value`` overrides, one-line errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pmf.config.overrides import NotOfItsKindError, find_option, read_value, sections
from pmf.config.sections import Config, as_plain
from pmf.config.shipped import find_config, known_configs
from pmf.errors import CrossFieldError, UserError
from pmf.options import FLOAT, RECORDED, expand_variables, number

# YAML 1.1, which PyYAML speaks, takes 1e-4 for a string and "no" for false. These, INT and FLOAT follow YAML 1.2.
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class _Loader(yaml.SafeLoader):
    """Without aliases: nine lines of them can stand for a billion values, or for themselves."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            problem = f"configs have no aliases (*{alias.anchor}); write the value out"
            raise yaml.composer.ComposerError(None, None, problem, alias.start_mark)
        return super().compose_node(parent, index)


@dataclass
class _Document:
    """Plain values of a YAML file and where each key stands, by dotted key."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides and check everything.

    Args:
        path: of the file, or the name of a config; see :func:`pmf.config.shipped.find_config`.

    Raises:
        UserError: with file and line, for anything that is not a valid config.
    """
    path = find_config(path)
    document = _read(path)
    for override in overrides:
        _apply_override(document, override)
    return _validate(document, str(path))


def save_config(config: Config, path: Path) -> None:
    """Write every resolved value as YAML that ``load_config`` reads back to an equal config."""
    path.write_text(dump_config(config))


def dump_config(config: Config) -> str:
    """Every resolved value as YAML."""
    return yaml.safe_dump(as_plain(config), sort_keys=False, default_flow_style=None)


def config_from_plain(values: dict[str, Any], where: str) -> Config:
    """A config from nested plain values (a checkpoint's own record); ``where`` names the source in errors."""
    return _validate(_Document(values), where, RECORDED)


def _read(path: Path) -> _Document:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this config ({_reason(error)}); {known_configs(path)}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise UserError(f"{path}: invalid YAML: nested too deeply; a config has sections and keys") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{place}: invalid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    document = _Document()
    if node is not None:
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:1: a config is a mapping of sections: {', '.join(Config.model_fields)}")
        document.values = _plain(node, path, "", document.places)
    return document


def _plain(node: yaml.Node, path: Path, key: str, places: dict[str, str]) -> Any:
    """Values of a YAML node; records the place of each key and refuses duplicates and tags."""
    place = f"{path}:{node.start_mark.line + 1}"
    places.setdefault(key, place)
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        raise UserError(f"{place}: {key} has the tag {node.tag}; configs hold plain values only")
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value)
            dotted = f"{key}.{name}" if key else name
            here = f"{path}:{key_node.start_mark.line + 1}"
            if name in values:
                raise UserError(f"{here}: {dotted} stands here a second time (first at {places[dotted]}); remove one")
            places[dotted] = here
            values[name] = _plain(value_node, path, dotted, places)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path, f"{key}.{i}", places) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    try:
        text = expand_variables(node.value, _VARIABLE)
    except UserError as error:
        raise UserError(f"{place}: {key} {error}") from None
    return text if node.style in ("'", '"', "|", ">") else _scalar(text)


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return number(text) if FLOAT.fullmatch(text) else text
    except ValueError:  # more digits than Python reads
        return text


def _apply_override(document: _Document, override: str) -> None:
    key, separator, text = override.partition("=")
    place = f"command line: {override}"
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UserError(f"{place}: an override is section.key=value, e.g. training.seed=1")
    value = _override_value(key, text, place)
    target = document.values
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[last] = value
    document.places = {known: at for known, at in document.places.items() if not known.startswith(f"{key}.")}
    document.places[key] = place


def _override_value(key: str, text: str, place: str) -> Any:
    option = find_option(Config, key)
    if option is None:
        raise UserError(f"{place}: unknown key {key}{_suggestion(key)}")
    if inner := sections(option.annotation):
        names = ", ".join(f"{key}.{name}" for name in inner[0].model_fields)
        raise UserError(f"{place}: {key} is a section; set its keys: {names}")
    try:
        return read_value(option, key, text)
    except NotOfItsKindError as error:
        raise UserError(f"{place}: {key} {error}") from None


def _validate(document: _Document, where: str, context: dict[str, Any] | None = None) -> Config:
    # A section written with nothing below it is the section's defaults.
    values = {name: {} if section is None else section for name, section in document.values.items()}
    try:
        return Config.model_validate(values, context=context)
    except ValidationError as error:
        raise UserError(_first_problem(error, document.places, where)) from None


def _first_problem(error: ValidationError, places: dict[str, str], where: str) -> str:
    """One line for the first error: place, key, what it is, what is allowed."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, CrossFieldError):
        return f"{_place(places, cause.key, where)}: {cause}"
    key = ".".join(str(part) for part in problem["loc"])
    place = _place(places, key, where)
    if isinstance(cause, UserError):
        return f"{place}: {key} {cause}"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key {key}{_suggestion(key)}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{place}: {key} is {problem['input']!r}: {message}{_did_you_mean(problem)}"


def _place(places: dict[str, str], key: str, where: str) -> str:
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, where)


def _suggestion(key: str) -> str:
    section = key.rpartition(".")[0]
    if others := _with_the_key(key):
        return f"; it is of {section}.name {' and '.join(others)}"
    known = list(_known_keys(Config))
    siblings = [k for k in known if k.rpartition(".")[0] == section] or list(Config.model_fields)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; allowed here: {', '.join(siblings)}"


def _with_the_key(key: str) -> list[str]:
    """With which names a section that is one of several has this key."""
    section, _, name = key.rpartition(".")
    option = find_option(Config, section)
    kinds = sections(option.annotation) if option else []
    return [str(kind_name) for kind in kinds if name in kind.model_fields for kind_name in _names_of(kind)]


def _names_of(kind: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["name"].annotation) if "name" in kind.model_fields else ()


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        for section in sections(info.annotation):
            yield from _known_keys(section, f"{prefix}{name}.")


def _did_you_mean(problem: Any) -> str:
    if problem["type"] != "literal_error":
        return ""
    allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
    close = difflib.get_close_matches(str(problem["input"]), allowed, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"
