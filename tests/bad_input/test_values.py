"""Values on the command line and paths anywhere: taken as they stand, read whole, or refused with what would work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from accelerate.state import AcceleratorState
from pydantic import BaseModel, BeforeValidator

from pmf.auto_batch.request import Request
from pmf.commands import path_text
from pmf.config.overrides import find_option, read_value, written
from pmf.config.sections import Config, as_plain
from pmf.config.yaml_file import config_from_plain, load_config
from pmf.errors import UserError
from pmf.options import PathText, expand_path
from pmf.training.trainer import Trainer
from tests.launch import ROOT, TINY

DIGITS = str(ROOT / "configs" / "digits.yaml")
SYNTHETIC = "data: {kind: synthetic}\ntraining: {max_steps: 1}\n"


def options(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option with its declared type."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from options(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def holds(annotation: Any, wanted: Any) -> bool:
    """Whether a type is, or is made of, another."""
    return annotation == wanted or any(holds(part, wanted) for part in get_args(annotation))


def takes_text(annotation: Any) -> bool:
    """Strings of any wording: choices and lists are read otherwise."""
    checks = [part.func.__qualname__ for part in get_args(annotation) if isinstance(part, BeforeValidator)]
    chosen = any(name.startswith("one_of.") for name in checks)  # by name from a table
    return holds(annotation, str) and not chosen and "list[" not in str(annotation)


TYPES = dict(options())
TEXTS = [key for key, annotation in TYPES.items() if takes_text(annotation)]
PATHS = [key for key, annotation in TYPES.items() if holds(annotation, PathText)]


@pytest.fixture
def load(tmp_path):
    """A config of a minimal YAML with overrides."""

    def call(*overrides: str, text: str = SYNTHETIC) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return call


def value_of(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_the_tables_of_options_are_not_empty():
    assert {"training.output_dir", "tracking.name", "data.path", "model.name", "data.split"} <= set(TEXTS)
    assert not {"data.kind", "optimizer.name", "optimizer.schedule"} & set(TEXTS)
    assert {
        "data.path",
        "data.autoencoder",
        "training.output_dir",
        "evaluation.reference",
        "evaluation.extractor",
        "evaluation.extractor_weights",
        "perceptual.lpips_weights",
        "perceptual.convnext_weights",
    } == set(PATHS)


@pytest.mark.parametrize("key", TYPES)
def test_every_option_takes_its_default_as_it_would_be_written(key):
    """And where it has none, the example that a refusal gives."""
    option = find_option(Config, key)
    text = written(option.default, option.annotation)
    value = read_value(option, key, text)
    if option.default not in (None, []):
        assert value == (list(option.default) if isinstance(option.default, tuple) else option.default)
    if type(None) in get_args(option.annotation):
        assert read_value(option, key, "null") is None


# Read as YAML, most of them would lose something, become something else, or be refused.
AS_THEY_STAND = [
    "/tmp/my data #2",
    "a: b",
    "2026",
    "1e3",
    "0x10",
    "true",
    "no",
    "null and void",
    "[brackets]",
    "{braces}",
    "'quoted'",
    '"half',
    "- dash",
    "a, b",
    "100%",
    "@at",
    "&anchor",
    "*star",
    "!tag",
    "a=b",
    " blanks ",
    "2026-11-25",
    "\u00e9t\u00e9 \u96ea",
]


@pytest.mark.parametrize("text", AS_THEY_STAND)
def test_the_text_of_a_string_option_is_taken_as_it_is(text, load):
    for key in TEXTS:
        option = find_option(Config, key)
        assert read_value(option, key, text) == text, key
        if key != "sampling.ema":  # which names one of the averages
            assert value_of(load(f"{key}={text}"), key) == text, key


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.betas=0.9,0.95", (0.9, 0.95)),
        ("optimizer.betas=[0.9, 0.95]", (0.9, 0.95)),
        ("sampling.interval=0,1", (0, 1)),
        ("training.max_steps=1e5", 100_000),
        ("training.max_steps=2.5e3", 2_500),
        ("training.global_batch_size=1024.0", 1024),
        ("evaluation.num_images=5e4", 50_000),
        ("ema.half_lives_kimg=10,2000", [10.0, 2000.0]),
        ("ema.half_lives_kimg=2000", [2000]),
        ("ema.decays=[]", []),
        ("ema.decays=0.999, 0.9999", [0.999, 0.9999]),
        ("tracking.name=2026", "2026"),
        ("tracking.name=null", None),
        ("training.gradient_clip=null", None),
        ("training.gradient_clip=1", 1.0),
        ("training.compile=true", True),
        ("training.compile=False", False),
        ("training.compile=auto", "auto"),
        ("data.channels=1", 1),
        ("training.mixed_precision=no", "no"),
        ("optimizer.lr=1e-4", 1e-4),
        ("sampling.ema=500", "500"),
        ("perceptual.lpips_weights=a.pth,b.pth", ["a.pth", "b.pth"]),
        ("perceptual.lpips_weights=[a.pth, 'b c.pth']", ["a.pth", "b c.pth"]),
        ("perceptual.lpips_weights=a b.pth", ["a b.pth"]),
        ("perceptual.convnext_weights=2026", ["2026"]),
    ],
)
def test_other_options_read_what_people_write(override, value, load):
    key = override.partition("=")[0]
    found = value_of(load(override), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.betas=0.9", "takes 2 numbers with commas between, e.g. optimizer.betas=0.9,0.95"),
        ("optimizer.betas=0.9,0.95,0.99", "takes 2 numbers with commas between, e.g. optimizer.betas=0.9,0.95"),
        ("optimizer.betas=(0.9, 0.95)", "takes 2 numbers with commas between, e.g. optimizer.betas=0.9,0.95"),
        ("optimizer.betas=0.9 0.95", "takes 2 numbers with commas between, e.g. optimizer.betas=0.9,0.95"),
        ("optimizer.lr=1e-4 # low", "takes a number, e.g. optimizer.lr=0.001"),
        ("optimizer.lr=", "takes a number, e.g. optimizer.lr=0.001"),
        ("optimizer.lr=1,5", "takes a number, e.g. optimizer.lr=0.001"),
        ("training.seed=1.5", "takes a whole number, e.g. training.seed=42"),
        ("training.seed=1_000", "takes a whole number, e.g. training.seed=42"),
        ("training.seed=0x10", "takes a whole number, e.g. training.seed=42"),
        ("training.seed=1e999", "takes a whole number, e.g. training.seed=42"),
        ("training.seed=null", "takes a whole number, e.g. training.seed=42"),
        ("training.max_steps=many", "takes a whole number or null, e.g. training.max_steps=8"),
        ("training.gradient_clip=off", "takes a number or null, e.g. training.gradient_clip=0.5"),
        ("training.compile=yes", "takes auto or true or false, e.g. training.compile=auto"),
        ("training.compile=1", "takes auto or true or false, e.g. training.compile=auto"),
        ("data.channels=rgb", "takes 1 or 3, e.g. data.channels=3"),
        ("ema.half_lives_kimg=10,", "takes numbers with commas between, e.g. ema.half_lives_kimg=500,1000,2000"),
        ("ema.half_lives_kimg=[10", "takes numbers with commas between, e.g. ema.half_lives_kimg=500,1000,2000"),
        ("ema.half_lives_kimg=10;20", "takes numbers with commas between, e.g. ema.half_lives_kimg=500,1000,2000"),
        ("perceptual.convnext_weights=['a,b', c]", "takes strings with commas between, e.g. perceptual.convnext_"),
        ("training.output_dir=", "takes a string, e.g. training.output_dir=runs/default"),
        ("training.output_dir= ", "is empty; write a path"),
        ("training={max_steps: 3}", "training is a section; set its keys: training.global_batch_size,"),
        ("ema.half_lives_kimg.0=3", "unknown key ema.half_lives_kimg.0; did you mean ema.half_lives_kimg?"),
        ("optimiser.lr=3", "unknown key optimiser.lr; did you mean optimizer.lr?"),
    ],
)
def test_the_rest_is_refused_with_an_example_that_works(override, message, load, tmp_path):
    with pytest.raises(UserError) as told:
        load(override)
    assert str(told.value).startswith(f"command line: {override}: ")
    assert message in str(told.value)
    if example := re.search(r"e\.g\. (.*)$", str(told.value)):
        load(example[1])
    # The same words in the other command that takes overrides.
    request = Request(config_path=tmp_path / "run.yaml", overrides=[override], device_memory=None, dry_run=True)
    with pytest.raises(UserError) as again:
        request.load()
    assert str(again.value) == str(told.value)


def test_whole_numbers_may_be_written_as_floats_in_yaml_and_nothing_else_is_converted(load):
    text = "data: {kind: synthetic}\ntraining: {max_steps: %s}\n"
    assert load(text=text % "1e5").training.max_steps == 100_000
    for wrong in ("1.5", "'10'", "1e999", "true"):
        with pytest.raises(UserError, match=r"run.yaml:2: training.max_steps is .*: input should be"):
            load(text=text % wrong)


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("digits", [20, 320, 5000])  # beyond 64 bits, beyond a float, beyond what Python reads
def test_numbers_that_nothing_can_hold_are_refused(digits, load):
    number = "1" + "0" * (digits - 1)
    for key in ("training.max_steps", "training.seed", "evaluation.num_images"):
        with pytest.raises(UserError, match=key):
            load(f"{key}={number}")
        with pytest.raises(UserError, match=key):
            load(text=in_yaml(key, number).replace("'", ""))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, a variable, and a working folder to look for mistakes in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PMF_TEST_PLACE", "/place")
    monkeypatch.setenv("PMF_TEST_EMPTY", "")
    monkeypatch.delenv("PMF_TEST_UNSET", raising=False)
    return str(tmp_path / "home")


EXPANDED = {
    "~": "{home}",
    "~/runs": "{home}/runs",
    "$HOME/runs": "{home}/runs",
    "${HOME}/runs": "{home}/runs",
    "$PMF_TEST_PLACE": "/place",
    "$PMF_TEST_PLACE/a b/${PMF_TEST_PLACE}x": "/place/a b//placex",
    "runs/a": "runs/a",
    "./~name": "./~name",
    "a~b/~": "a~b/~",
    "5$ a$": "5$ a$",
    "https://host/$HOME/~x?y=$z": "https://host/$HOME/~x?y=$z",
    "timm/convnextv2_base.fcmae": "timm/convnextv2_base.fcmae",
    "digits": "digits",
    "package.module:callable": "package.module:callable",
}
REFUSED = {
    "$PMF_TEST_UNSET/x": "uses $PMF_TEST_UNSET, which is not set; export it or write the value",
    "a/${PMF_TEST_UNSET}": "uses ${PMF_TEST_UNSET}, which is not set; export it or write the value",
    "$PMF_TEST_EMPTY/runs": "uses $PMF_TEST_EMPTY, which is empty; export it or write the value",
    "~nobody_here/x": "begins with ~nobody_here, whose home folder is not known; write it out",
    "${HOME:-/tmp}/x": "holds ${HOME:-/tmp}/x, which only a shell understands",
    "$(pwd)/x": "holds $(pwd)/x, which only a shell understands",
}


def in_yaml(key: str, text: str) -> str:
    section, name = key.split(".")
    sections = {"data": {"kind": "synthetic"}, "training": {"max_steps": "1"}}
    sections.setdefault(section, {})[name] = "'" + text.replace("'", "''") + "'"
    return "".join(
        f"{section}:\n" + "".join(f"  {name}: {value}\n" for name, value in keys.items())
        for section, keys in sections.items()
    )


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


@pytest.mark.parametrize("text", EXPANDED)
def test_paths_are_expanded_wherever_they_are_given(text, home, load):
    expected = EXPANDED[text].format(home=home)
    assert expand_path(text) == path_text(text) == expected
    for key in PATHS:
        assert first(value_of(load(f"{key}={text}"), key)) == expected, key
        assert first(value_of(load(text=in_yaml(key, text)), key)) == expected, key


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_expanded_is_refused_and_names_option_and_variable(text, home, load):
    for key in PATHS:
        line = in_yaml(key, text)
        number = next(i for i, one in enumerate(line.splitlines(), 1) if text in one)
        for place, call in (
            (f"command line: {key}={text}", lambda key=key: load(f"{key}={text}")),
            (f"run.yaml:{number}", lambda line=line: load(text=line)),
        ):
            with pytest.raises(UserError) as told:
                call()
            # An item of a list is named by its number.
            assert re.search(rf"{re.escape(place)}: {key}(\.0)? {re.escape(REFUSED[text])}", str(told.value))
            assert "\n" not in str(told.value)


def test_a_run_writes_where_the_variable_points_and_can_be_read_without_it(home, tmp_path, monkeypatch):
    """Its own record holds the path that was meant, for commands that are started elsewhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    overrides = [*TINY, "training.max_steps=1", "data.kind=synthetic", "training.output_dir=$HOME/runs"]
    try:
        Trainer(load_config(DIGITS, [*overrides, "data.path=$PMF_TEST_PLACE/set"])).train()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert os.listdir(tmp_path / "work") == []
    monkeypatch.delenv("PMF_TEST_PLACE")
    monkeypatch.setenv("HOME", "/elsewhere")
    config = load_config(Path(home) / "runs" / "config.yaml")
    assert (config.training.output_dir, config.data.path) == (f"{home}/runs", "/place/set")


def test_what_a_checkpoint_records_is_taken_as_it_stands(load, monkeypatch):
    """Its paths were expanded when the run began, or hold a dollar that was none of a variable then."""
    recorded = as_plain(load())
    for key in PATHS:
        section, name = key.split(".")
        text = "$PMF_SURELY_UNSET/~/x"
        whole = isinstance(recorded[section][name], list)
        recorded[section][name] = [text] if whole else text
    monkeypatch.delenv("PMF_SURELY_UNSET", raising=False)
    assert as_plain(config_from_plain(recorded, "a checkpoint")) == recorded


def test_paths_are_expanded_in_one_place():
    """A second way would have other rules."""
    sources = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]
    found = {path.name for path in sources if re.search(r"expanduser|expandvars", path.read_text())}
    assert found == {"options.py"}
