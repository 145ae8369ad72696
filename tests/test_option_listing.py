"""``--help`` lists every option with what it takes, its default and its sentence, read off the declarations."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter

from pmf.config.command_line import ConfigParser
from pmf.config.listing import option_listing, option_sentences, option_values
from pmf.config.overrides import find_option, read_value, sections
from pmf.config.sections import Config
from pmf.data.options import SOURCES
from pmf.flow.objective import OBJECTIVES
from pmf.net.sizes import SIZES
from pmf.optim.options import RULES

LISTING = option_listing()
OPTIONS = [
    (f"{section}.{name}", kind)
    for section, info in Config.model_fields.items()
    for kind in sections(info.annotation)
    for name in kind.model_fields
]


def listed() -> dict[str, tuple[list[str], str]]:
    """By key: the parts in brackets, and the sentence."""
    found = {}
    for entry in re.split(r"\n  (?=\w+\.\w+  \()", re.sub(r"\n\n.*?(?=\n  \w)", "", LISTING, flags=re.DOTALL))[1:]:
        key, brackets, sentence = re.fullmatch(r"(\S+) \((.*?)\) (.*)", " ".join(entry.split())).groups()
        assert key not in found
        found[key] = (brackets.split("; "), sentence)
    return found


def test_every_option_is_listed_once_and_nothing_else():
    assert listed().keys() == {key for key, _ in OPTIONS}
    assert option_sentences().keys() == listed().keys()


def test_lines_have_80_columns_but_for_urls():
    assert [line for line in LISTING.splitlines() if len(line) > 80 and "http" not in line] == []


def test_defaults_and_sentences_are_the_declared_ones_for_every_method():
    """What is listed, read as a user would write it, is the value that the section has."""
    entries, wrong = listed(), []
    for key, kind in OPTIONS:
        option = kind.model_fields[key.partition(".")[2]]
        (_, usual, *others), sentence = entries[key]
        default = usual.removeprefix("default ")
        for other in others:
            value, _, methods = other.partition(" with ")
            if methods and kind.model_fields["name"].default in methods.split(" and "):
                default = value
        value = [] if default == "[]" else read_value(option, key, default) if key != "objective.name" else "pmf"
        declared = option.get_default(call_default_factory=True) if key != "objective.name" else "pmf"
        if value != (list(declared) if isinstance(declared, tuple) else declared):
            wrong.append((key, kind, default))
        if " ".join((option.description or "").replace("``", "").split()) not in sentence:
            wrong.append((key, kind, sentence))
    assert wrong == []


def test_options_of_some_methods_say_of_which():
    entries = listed()
    for key, _ in OPTIONS:
        of = [name for name in OBJECTIVES for other, kind in OPTIONS if other == key and method_of(kind) == name]
        said = [part for part in entries[key][0] if part.startswith("only of ")]
        if key.startswith("objective.") and len(of) < len(OBJECTIVES):
            assert sorted(said[0].removeprefix("only of ").split(" and ")) == sorted(of)
        else:
            assert said == []


def method_of(kind) -> object:
    return kind.model_fields["name"].default if "name" in kind.model_fields else None


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("training.seed", "a whole number from 0"),
        ("training.micro_batch_size", "a whole number above 0 or null"),
        ("training.compile", "auto, true or false"),
        ("optimizer.momentum", "a number from 0 below 1"),
        ("data.max_corrupt_fraction", "a number from 0 to 1"),
        ("data.path", "a path or null"),
        ("optimizer.betas", "2 numbers with commas between"),
        ("optimizer.name", "muon, nadamw or adamw"),
    ],
)
def test_what_an_option_takes_is_told_with_its_bounds(key, takes):
    assert listed()[key][0][0] == takes


def test_values_that_shells_complete_are_taken_by_the_option():
    taken = []
    for key in dict(OPTIONS):
        option = find_option(Config, key)
        for text in option_values(key) if key not in ("objective.name", "model.name") else ():
            TypeAdapter(option.rebuild_annotation()).validate_python(read_value(option, key, text), strict=True)
            taken.append(key)
    assert len(taken) > 50
    assert option_values("objective.name") == list(OBJECTIVES)
    assert option_values("model.name") == list(SIZES)
    assert option_values("data.kind") == list(SOURCES)
    assert option_values("optimizer.name") == list(RULES)
    assert option_values("data.channels") == ["1", "3"]
    assert option_values("training.cuda_graph") == ["step", "true", "false"]
    assert option_values("training.seed") == option_values("data.path") == option_values("no.such") == []


def test_a_row_added_to_a_table_is_listed(monkeypatch):
    monkeypatch.setitem(RULES, "lion", "tests.optim.lion:Lion")
    assert "optimizer.name  (muon, nadamw, adamw or lion; default muon)" in option_listing()
    assert option_values("optimizer.name")[-1] == "lion"


def test_the_short_help_has_no_options_of_the_config(capsys):
    parser = ConfigParser(prog="x")
    parser.add_overrides("values")
    printed = {}
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit) as left:
            parser.parse_args([flag])
        assert left.value.code == 0
        printed[flag] = capsys.readouterr().out
    assert "training.seed" not in printed["-h"]
    assert printed["--help"].startswith(printed["-h"])
    assert LISTING in printed["--help"]
