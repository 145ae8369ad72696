"""Feature networks: users' own, Inception's loading, and what their records say."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pmf.distributed.world import ALONE
from pmf.errors import UserError
from pmf.evaluation.extractor_table import open_extractor
from pmf.evaluation.extractors import load_custom
from pmf.evaluation.inception import FILE, LAYERS, load_inception
from tests.evaluation.networks import SmallFeatures

HERE = "tests.evaluation.networks"
IMAGES = torch.randint(256, (5, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class RandomInception(FeatureExtractorInceptionV3):
    """As it is before its weights are loaded."""

    def load_state_dict(self, *arguments, **options):
        pass


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_a_users_network_by_python_path_and_as_torchscript(tmp_path):
    expected = SmallFeatures()(IMAGES)
    by_path = load_custom(f"{HERE}:create")
    file = tmp_path / "small.pt"
    torch.jit.save(torch.jit.trace(SmallFeatures(), IMAGES, check_trace=False), file)
    scripted = load_custom(str(file))
    for extractor in (by_path, scripted):
        features = extractor(IMAGES)
        assert torch.equal(features.values, expected[0])
        assert torch.equal(features.logits, expected[1])
        sizes = extractor.output_sizes((3, 12, 12))
        assert (sizes.features, sizes.num_classes) == (16, 12)
    assert (by_path.name, scripted.name) == (f"{HERE}:create", "small.pt")
    assert scripted.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert by_path.sha256 == load_custom(f"{HERE}:create").sha256
    assert by_path.sha256 != load_custom(f"{HERE}:OneOutput").sha256
    features = load_custom(f"{HERE}:OneOutput")(IMAGES)
    assert (tuple(features.values.shape), features.logits) == ((5, 3), None)


def test_extraction_is_float32_whatever_is_set_outside():
    extractor = load_custom(f"{HERE}:create")
    expected = extractor(IMAGES)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = extractor(IMAGES)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert inside.values.dtype == torch.float32
    assert torch.equal(inside.values, expected.values)
    assert not inside.values.requires_grad


def test_what_is_not_an_extractor_is_one_line(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("no network")
    for name, message in (
        ("no.such:thing", "--extractor no.such:thing: No module named 'no'; give package.module:callable"),
        (f"{HERE}:missing", "has no attribute 'missing'"),
        (f"{HERE}:not_a_network", "returned int; it must return a torch.nn.Module"),
        ("nowhere.pt", "--extractor nowhere.pt: there is no such file; give inception, digits"),
        (str(text), "is not a TorchScript file"),
    ):
        with pytest.raises(UserError) as error:
            open_extractor(name, None, (3, 12, 12), ALONE)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"WrongOutput: must return features \(B, D\)"):
        load_custom(f"{HERE}:WrongOutput")(IMAGES)
    with pytest.raises(UserError, match=r"fails on images of shape \(1, 12, 12\)") as error:
        load_custom(f"{HERE}:create").output_sizes((1, 12, 12))
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="take uint8"):
        load_custom(f"{HERE}:create")(IMAGES.float())
    with pytest.raises(UserError, match="is for --extractor inception; leave it out for digits"):
        open_extractor(None, text, (1, 8, 8), ALONE)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_inception_weights_are_loaded_as_data_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("malicious.pth", {"fc.bias": Malicious()}), ("other.pth", {"fc.bias": torch.zeros(3)})):
        torch.save(content, name)
        with pytest.raises(UserError, match=f"^{name}: does not hold torch-fidelity's InceptionV3 weights") as error:
            load_inception(Path(name), ALONE)
        assert "\n" not in str(error.value)
    assert not Path("touched").exists()
    pickle.loads(pickle.dumps(Malicious()))  # it would have been
    assert Path("touched").exists()
    with pytest.raises(UserError, match=r"^nothing\.pth: the Inception weights cannot be read"):
        load_inception(Path("nothing.pth"), ALONE)


def test_inception_is_torch_fidelitys(tmp_path):
    torch.save({}, tmp_path / "none.pth")
    weights = RandomInception("random", list(LAYERS), str(tmp_path / "none.pth")).state_dict()
    file = tmp_path / "weights.pth"
    torch.save(weights, file)
    state = torch.get_rng_state()
    ours = open_extractor("inception", file, (3, 12, 12), ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = FeatureExtractorInceptionV3("inception", list(LAYERS), str(file))
    expected = theirs(IMAGES)
    features = ours(IMAGES)
    assert torch.equal(features.values, expected[0])
    assert torch.equal(features.logits, expected[1])
    assert features.values.shape == (5, 2048)
    grey = ours(IMAGES[:, :1])
    assert torch.equal(grey.values, theirs(IMAGES[:, :1].repeat(1, 3, 1, 1))[0])
    assert ours.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_missing_inception_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        open_extractor(None, None, (3, 32, 32), ALONE)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/hub/checkpoints/{FILE}: the Inception weights are not there and cannot be")
    assert "https://github.com/toshas/torch-fidelity" in text
    assert "--extractor-weights" in text
    assert "\n" not in text
