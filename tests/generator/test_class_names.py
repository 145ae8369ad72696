"""What classes are called: ImageNet's names, those of the data, and which class a name means."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmf
from pmf.checkpoint.places import list_checkpoints
from pmf.data.class_names import find_class, resolve_names
from pmf.data.options import DataConfig
from pmf.data.source import class_names, create_source
from tests.latents import NUM_CLASSES, jpeg_config, latent_config


@pytest.fixture(scope="module")
def imagenet() -> tuple[str, ...]:
    return resolve_names(DataConfig(path="gone"), ())


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("golden retriever", 207),
        ("Golden  Retriever", 207),
        ("golden_retriever", 207),
        ("tinca TINCA", 0),  # a synonym
        ("tench, Tinca tinca", 0),
        ("Cardigan Welsh corgi", 264),
        ("Cardigan, Cardigan Welsh corgi", 264),  # though cardigan is also a jacket
        ("toilet tissue", 999),
    ],
)
def test_imagenet_classes_by_any_of_their_names(imagenet, name, label):
    assert len(imagenet) == 1000
    assert find_class(name, imagenet) == label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", "label 'crane': is the name of 2 classes; give the number of one: 134 (crane), 517 (crane)"),
        ("golden retreiver", "label 'golden retreiver': no class has this name; did you mean 'golden retriever' (207)"),
        ("qqqqq", "label 'qqqqq': no class has this name; classes are 0 ... 999, the first is 'tench, Tinca tinca'"),
    ],
)
def test_a_name_of_none_or_of_several_is_refused(imagenet, name, message):
    with pytest.raises(pmf.UserError) as error:
        find_class(name, imagenet)
    assert str(error.value).startswith(message)


def test_names_are_those_recorded_then_those_of_the_kind(imagenet):
    four = DataConfig(kind="imagefolder", path="gone", num_classes=4)
    assert resolve_names(four, ("n02099601", "n01440764", "n03126707", "n02012849"))[:2] == (imagenet[207], imagenet[0])
    assert resolve_names(four, ("n02099601", "cat", "dog", "hen")) == ("n02099601", "cat", "dog", "hen")
    assert (
        resolve_names(four, ("cat", "dog")) == resolve_names(four, ()) == ("class 0", "class 1", "class 2", "class 3")
    )
    digits = DataConfig(kind="digits", channels=1, num_classes=10)
    assert resolve_names(digits, ()) == tuple("0123456789")


def test_data_sets_say_what_their_classes_are_called(jpegs, autoencoder, encoded, tmp_path):
    folders = tuple(f"class_{number}" for number in range(NUM_CLASSES))
    assert class_names(create_source(jpeg_config(jpegs, autoencoder), 0)) == folders
    assert class_names(create_source(latent_config(encoded(), autoencoder), 0)) == folders
    features = {"label": {"names": ["hen", "owl"], "_type": "ClassLabel"}}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    named = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for file, columns, names in (("named", named, ("hen", "owl")), ("plain", schema, ())):
        folder = tmp_path / file / "data"
        folder.mkdir(parents=True)
        table = pa.table({"image": [b"a", b"b"], "label": [0, 1]}, schema=columns)
        pq.write_table(table, folder / "train-0.parquet")
        assert class_names(create_source(DataConfig(path=str(folder.parent), num_classes=2), 0)) == names


def test_a_run_records_them_and_weights_find_them_without_the_data(digits_run, tmp_path):
    newest = list_checkpoints(digits_run)[-1]
    state = json.loads((newest / "state.json").read_text())
    assert state["class_names"] == list("0123456789")
    # As of a run on folders that are called otherwise, copied without its manifest.
    state["class_names"] = [f"digit {number}" for number in range(10)]
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "ema_10.safetensors").write_bytes((newest / "ema_10.safetensors").read_bytes())
    model = pmf.load(tmp_path, device="cpu")
    assert model.class_names[3] == "digit 3"
    assert model.find_class("Digit 7") == 7
