"""A sampling option is declared once: its flag, its record and its place in sweeps come from there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic.fields import FieldInfo

from pmf.config.sections import Config, SamplingConfig
from pmf.config.yaml_file import load_config
from pmf.errors import UserError
from pmf.flow.options import SAMPLERS
from pmf.options import Interval, PositiveFloat
from tests.launch import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"


class WiderSampling(SamplingConfig):
    """With two options more."""

    warmth: PositiveFloat = 1.0
    """Scale of the noise, 100% of it by default."""
    window: Interval = (0.0, 1.0)
    """Times in which it counts."""


def warm(velocity, noise, *, num_steps, warmth, window, **_):
    """One step from scaled noise; nothing in the library knows these two options."""
    assert num_steps == 1
    z = noise * warmth * (window[1] - window[0])
    return z - velocity(z, 1.0, 0.0)


@pytest.fixture
def wider(monkeypatch):
    """The config with those options, and the sampler that uses them."""
    monkeypatch.setitem(SAMPLERS, "warm", "tests.generation.test_sampling_options:warm")
    with monkeypatch.context() as patch:
        section = FieldInfo.from_annotated_attribute(WiderSampling, WiderSampling())
        patch.setitem(Config.model_fields, "sampling", section)
        Config.model_rebuild(force=True)
        yield
    Config.model_rebuild(force=True)
    assert Config.model_fields["sampling"].annotation is SamplingConfig


def pixels(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))]


@pytest.mark.usefixtures("wider")
def test_a_new_option_is_in_configs_flags_folders_and_records(weights, call, tmp_path, capsys):
    config = load_config(DIGITS, ["sampling.warmth=2.5", "sampling.window=0,0.5"])
    assert (config.sampling.warmth, config.sampling.window) == (2.5, (0.0, 0.5))
    for verb in ("sample", "fid", "sweep"):
        with pytest.raises(SystemExit):
            call(verb, "--help")
        told = " ".join(capsys.readouterr().out.split())
        repeat = "; repeat for several" if verb == "sweep" else ""
        assert "Scale of the noise, 100% of it by default; default: the config's --window" in told
        assert f"Times in which it counts; default: the config's{repeat}" in told

    sample = ("sample", "--checkpoint", weights, "--num-images", 4)
    call(*sample, "--output", tmp_path / "plain")
    call(*sample, "--output", tmp_path / "cold", "--sampler", "warm", "--warmth", "3", "--window", 0, 0.5)
    call(*sample, "--output", tmp_path / "same", "--sampler", "warm", "--warmth", "2", "--window", 0, 0.5)
    record = json.loads((tmp_path / "cold" / "sampling.json").read_text())
    assert (record["sampler"], record["warmth"], record["window"]) == ("warm", 3.0, [0.0, 0.5])
    assert pixels(tmp_path / "plain") == pixels(tmp_path / "same") != pixels(tmp_path / "cold")
    with pytest.raises(UserError, match=r"\(warmth is 2.0 there, 3.0 here\)"):
        call(*sample, "--output", tmp_path / "same", "--sampler", "warm", "--warmth", "3", "--window", 0, 0.5)

    fid = ("fid", "--checkpoint", weights, "--num-images", 10, "--reference", "digits")
    call(*fid, "--warmth", "4", "--sampler", "warm", "--output", tmp_path / "fid.json")
    images = json.loads((tmp_path / "fid.json").read_text())["images"]
    assert (images["sampler"], images["warmth"], images["window"]) == ("warm", 4.0, [0.0, 1.0])
    told = "sampler warm, noise ours, precision float32, ema None, warmth 4.0, window [0.0, 1.0]"
    assert told in capsys.readouterr().out


@pytest.mark.usefixtures("wider")
def test_any_option_can_be_swept(weights, call, tmp_path, capsys):
    grid = ("--warmth", 1, 2, "--sampler", "equal_steps", "warm", "--window", 0, 1, "--window", 0, 0.5)
    sweep = ("sweep", "--checkpoint", weights, "--num-images", 10, "--reference", "digits", "--batch-size", 10)
    call(*sweep, *grid, "--output", tmp_path / "sweep")
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    scores = {(row["sampler"], row["warmth"], row["window"]): row["fid"] for row in rows}
    assert len(rows) == len(scores) == 8
    assert len({score for (sampler, *_), score in scores.items() if sampler == "equal_steps"}) == 1
    # Of the sampler that uses them: half of twice the noise is the noise.
    assert scores["warm", "1.0", "[0.0, 1.0]"] == scores["warm", "2.0", "[0.0, 0.5]"]
    assert len({score for (sampler, *_), score in scores.items() if sampler == "warm"}) == 3
    assert {name: rows[0][name] for name in ("omega", "t_min", "t_max", "num_steps", "ema")} == {
        **{"omega": "1.0", "t_min": "0.0", "t_max": "1.0"},  # the recipe's
        **{"num_steps": "1", "ema": "-"},
    }
    header = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["omega", "t_min", "t_max", "num_steps"] for line in header)
    assert len(list((tmp_path / "sweep").glob("point_*.json"))) == 8


@pytest.mark.usefixtures("wider")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--warmth", "0"), "command line: sampling.warmth is 0: input should be greater than 0"),
        (("--warmth", "hot"), "argument --warmth: 'hot' does not fit: it takes a number, e.g. --warmth=1.0; "),
        (("--window", "0", "x"), "argument --window: 'x' does not fit: it takes a number; "),
        (("--sampler", "euler"), "command line: sampling.sampler is 'euler': input should be 'equal_steps' or 'warm'"),
        (
            ("--num-steps", "1.5"),
            "argument --num-steps: '1.5' does not fit: it takes a whole number, e.g. --num-steps=1; ",
        ),
    ],
)
def test_values_that_cannot_be(given, message, weights, call, tmp_path):
    for verb in ("sample", "sweep"):
        output = ("--output", tmp_path / "out", "--num-images", 4)
        reference = () if verb == "sample" else ("--reference", "digits")
        with pytest.raises(UserError) as error:
            call(verb, "--checkpoint", weights, *output, *reference, *given)
        assert str(error.value).startswith(message)
        assert not (tmp_path / "out").exists()


def test_a_folder_of_before_there_were_samplers_is_completed(weights, call, tmp_path, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "other", SAMPLERS["equal_steps"])
    sample = ("sample", "--checkpoint", weights, "--num-images", 6, "--omega", 2, "--interval", 0.2, 0.8)
    output = ("--output", tmp_path / "images")
    call(*sample, *output)
    whole = pixels(tmp_path / "images")
    record = tmp_path / "images" / "sampling.json"
    named = json.loads(record.read_text())
    plan = ["num_images", "labels", "images_in_a_row", "seed"]
    options = ["omega", "interval", "num_steps", "sampler", "noise", "precision"]
    assert list(named) == [*plan, *options, "rounding", "weights"]
    older = ("num_images", "labels", "seed", "num_steps", "omega", "interval", "weights")  # as it was written then
    record.write_text(json.dumps({name: named[name] for name in older}, indent=1))
    for index in (1, 4):
        (tmp_path / "images" / f"{index:06d}.png").unlink()
    (tmp_path / "images" / "labels.csv").unlink()
    with pytest.raises(UserError, match=r"\(sampler is equal_steps there, other here\)"):
        call(*sample, *output, "--sampler", "other")
    call(*sample, *output)
    assert pixels(tmp_path / "images") == whole
    assert (tmp_path / "images" / "labels.csv").exists()
    assert json.loads(record.read_text()) == named
