"""What the documents say is there: links, headings, files, options, and every command's flags and configs."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmf.config.overrides import NotOfItsKindError, find_option, read_value
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from tests.documents import DOCUMENTS, anchors, blocks, braces, commands, links, prose, spans
from tests.launch import ROOT

INDEX = ROOT / "docs" / "README.md"
SHELL = ("bash", "sh", "console")
# Below these a file may be named as the reader knows it: the tree of the sources, and that of the tests.
BASES = (ROOT, ROOT / "src" / "pmf", ROOT / "tests")
FOLDERS = {path.name for base in BASES for path in base.iterdir() if path.is_dir()}
PLACEHOLDER = re.compile("yours|NAME")
# Programs that are not ours, and whose words are not looked at.
OTHERS = {"pip", "echo", "npm", "hf", "export", "cd", "git", "unzip", "mkdir", "curl", "ruff", "mypy"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def each_document(test: Any) -> Any:
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))(test)


@each_document
def test_links_lead_to_files_and_headings(document: Path) -> None:
    broken = []
    for target in links(document):
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    missing = []
    for span in spans(document):
        found = re.fullmatch(r"([\w./{},*-]+\.(?:py|md|yaml|sbatch))(?:::(\w+))?", span)
        if not found or found[1].partition("/")[0] not in FOLDERS or PLACEHOLDER.search(span):
            continue
        for name in braces(found[1]):
            files = [file for base in BASES for file in base.glob(name)]
            if not files or (found[2] and not any(f"def {found[2]}(" in file.read_text() for file in files)):
                missing.append(span)
    assert missing == []


@each_document
def test_options_that_are_named_exist_and_take_the_value(document: Path) -> None:
    wrong = []
    for span in spans(document):
        for word in span.split():
            key, _, text = word.partition("=")
            if re.fullmatch(r"\w+(\.\w+)+", key.rstrip(":")) and key.partition(".")[0] in Config.model_fields:
                option = find_option(Config, key.rstrip(":"))
                try:
                    if option is None and not re.search(r"\.(py|md|safetensors|onnx)$", key):
                        wrong.append(word)
                    elif option is not None and "=" in word:
                        read_value(option, key, text)
                except NotOfItsKindError as error:
                    wrong.append(f"{word}: {error}")
    assert wrong == []


def test_every_page_is_in_the_index() -> None:
    listed = {(INDEX.parent / link.partition("#")[0]).resolve() for link in links(INDEX)}
    assert set(INDEX.parent.glob("*.md")) - {INDEX} - listed == set()


@each_document
def test_yaml_blocks_are_configs(document: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(document)):
        if block.language == "yaml":
            file = tmp_path / f"{number}.yaml"
            file.write_text(block.text)
            stated = yaml.safe_load(block.text)
            completed = {"data": ["data.kind=synthetic"], "training": ["training.max_steps=1"]}
            load_config(file, [text for section, texts in completed.items() if section not in stated for text in texts])


@each_document
def test_commands_are_accepted(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is given to the parser that it would reach; its config, with the values that it sets, is loaded."""
    monkeypatch.chdir(ROOT)
    problems = []
    for block in blocks(document):
        for words in commands(block.text) if block.language in SHELL else ():
            try:
                check(words, monkeypatch)
            except (UserError, RefusedError) as error:
                problems.append(f"{' '.join(words)}: {error}")
    assert problems == []


@each_document
def test_commands_stand_in_blocks_that_say_so(document: Path) -> None:
    """So that the test above sees them."""
    commanded = re.compile(r"^ *(uv run|torchrun|accelerate launch|python|make|pip install|pmf) ", re.MULTILINE)
    assert [block.text for block in blocks(document) if not block.language and commanded.search(block.text)] == []
    assert re.findall(r"^ {4,}(?:uv run|python|torchrun) .*", prose(document), re.MULTILINE) == []


class RefusedError(Exception):
    """A command of a document that nothing takes."""


class ParsedError(Exception):
    """Ends a command where its arguments have been read."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__("parsed")
        self.arguments = arguments


def stopping_at(parse: Any) -> Any:
    def read(parser: argparse.ArgumentParser, *given: Any) -> argparse.Namespace:
        raise ParsedError(parse(parser, *given))

    return read


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse what would not run: from uv and the launchers to the command itself."""
    program, rest = words[0], words[1:]
    if program == "uv":
        check_uv(rest, monkeypatch)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(rest)
        check(["-m"] * parsed.module + [parsed.training_script, *parsed.training_script_args], monkeypatch)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        parsed = launch_command_parser().parse_args(rest[1:])
        require(parsed.config_file)
        check([parsed.training_script, *parsed.training_script_args], monkeypatch)
    elif program == "python":
        check(rest, monkeypatch)
    elif program == "pmf":
        check_ours("pmf.cli.entry", rest, monkeypatch)
    elif program == "-m" and rest[0] == "pmf":
        check(rest, monkeypatch)
    elif program == "-m" or program.endswith(".py"):
        name = rest.pop(0) if program == "-m" else program.removesuffix(".py").replace("/", ".")
        if name.startswith("benchmarks."):
            check_benchmark(name, rest)
        elif program != "-m" or name.startswith("pmf."):
            check_ours(name, rest, monkeypatch)
    elif program == "make":
        if not set(rest) <= TARGETS:
            raise RefusedError("no such target")
    elif program in ("sbatch", "pytest"):
        for word in rest:
            if "/" in word:
                require(word.partition("::")[0])
    elif program not in OTHERS:
        raise RefusedError("not a program that the documents use")


def check_uv(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *rest = words
    while rest and rest[0] == "--extra":
        if rest[1] not in EXTRAS:
            raise RefusedError(f"no extra {rest[1]}")
        rest = rest[2:]
    if verb == "run":
        check(rest, monkeypatch)
    elif verb not in ("sync", "build", "pip") or (rest and verb == "sync"):
        raise RefusedError("not what uv is used for here")


def check_benchmark(name: str, words: list[str]) -> None:
    """Its flags stand in its source: what benchmarks import takes many seconds."""
    path = ROOT / name.replace(".", "/")
    files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    if not all(file.exists() for file in files):
        raise RefusedError(f"there is no {name}")
    known = {flag for file in files for flag in re.findall(r'"(--[a-z-]+)"', file.read_text())}
    if unknown := {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}:
        raise RefusedError(f"{name} has no {unknown}")


def check_ours(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a command of ours up to where it has read its arguments, then load the config that they name."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        for kind in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, kind, stopping_at(getattr(argparse.ArgumentParser, kind)))
        try:
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):  # python -m runs its __main__
                module = importlib.import_module(f"{name}.__main__")
            module.main()
        except ParsedError as found:
            arguments = vars(found.arguments)
        except SystemExit as end:
            if end.code == 0:  # --help
                return
            raise RefusedError("its parser takes no such arguments") from None
        else:
            raise RefusedError("it read no arguments")
    config = arguments.get("config")
    if config and (Path(config).suffix != ".yaml" or Path(config).parent.name):  # others are the reader's own files
        load_config(config, arguments.get("overrides") or [])
    for word in words:
        if re.match(r"(configs|tests|benchmarks|docs)/", word):
            require(word)


def require(name: str | None) -> None:
    if name and not (ROOT / name).exists():
        raise RefusedError(f"there is no {name}")
