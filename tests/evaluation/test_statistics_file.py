"""Statistics of references: the layouts that are published, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from pmf.errors import UserError
from pmf.evaluation.frechet import Gaussian
from pmf.evaluation.statistics_file import load_statistics, save_statistics
from tests.evaluation.covariances import NO_COVARIANCES

MEAN = np.arange(3.0)
COVARIANCE = np.diag([1.0, 2.0, 3.0])


def test_ours_comes_back_bit_by_bit(tmp_path):
    path = tmp_path / "folder" / "ours.npz"
    factor = torch.rand(3, 3, dtype=torch.float64)
    gaussian = Gaussian(torch.rand(3, dtype=torch.float64), factor @ factor.T)
    protocol = {"extractor": {"name": "small", "sha256": "0" * 64}, "image_shape": [3, 8, 8]}
    save_statistics(path, gaussian, 50, protocol)
    saved = load_statistics(path)
    assert torch.equal(saved.gaussian.mean, gaussian.mean)
    assert torch.equal(saved.gaussian.covariance, gaussian.covariance)
    assert (saved.layout, saved.num_images, saved.protocol) == ("pmf", 50, protocol)
    assert saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == ["ours.npz"]


@pytest.mark.parametrize(("layout", "prefix"), [("adm", ""), ("pmf-jax", "ref_")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_layouts_are_known_by_their_keys(tmp_path, layout, prefix, dtype):
    path = tmp_path / "published.npz"
    arrays = {f"{prefix}mu": MEAN.astype(dtype), f"{prefix}sigma": COVARIANCE.astype(dtype)}
    # ADM's files also hold spatial statistics and samples.
    np.savez(path, **arrays, mu_s=np.zeros(5), arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    saved = load_statistics(path)
    assert (saved.layout, saved.num_images, saved.protocol) == (layout, None, {})
    assert saved.gaussian.mean.dtype == saved.gaussian.covariance.dtype == torch.float64
    np.testing.assert_array_equal(saved.gaussian.mean.numpy(), MEAN)
    np.testing.assert_array_equal(saved.gaussian.covariance.numpy(), COVARIANCE)


@pytest.mark.parametrize("kind", NO_COVARIANCES)
def test_what_is_no_covariance_is_refused_in_every_layout(kind, tmp_path):
    covariance, message = NO_COVARIANCES[kind]
    path = tmp_path / "statistics.npz"
    for prefix, ours in (("", {"n": np.int64(50), "protocol": np.str_("{}")}), ("", {}), ("ref_", {})):
        for dtype in (np.float32, np.float64):
            np.savez(path, **{f"{prefix}mu": np.zeros(20), f"{prefix}sigma": covariance.numpy().astype(dtype)}, **ours)
            with pytest.raises(UserError) as error:
                load_statistics(path)
            assert str(error.value).startswith(f"{path}: ")
            assert message in str(error.value)
            assert "\n" not in str(error.value)
    # Nor is it written.
    with pytest.raises(UserError):
        save_statistics(tmp_path / "ours.npz", Gaussian(torch.zeros(20, dtype=torch.float64), covariance), 50, {})
    assert not (tmp_path / "ours.npz").exists()


def test_what_is_no_statistics_file_is_one_line(tmp_path):
    path = tmp_path / "bad.npz"

    def refused() -> str:
        with pytest.raises(UserError) as error:
            load_statistics(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "cannot be read (No such file or directory)" in refused()
    path.write_text("text")
    assert "is not an .npz file of plain arrays" in refused()
    np.savez(path, mean=MEAN)
    assert "holds mean; a statistics file holds mu and sigma or ref_mu and ref_sigma" in refused()
    np.savez(path, mu=MEAN, sigma=np.eye(4))
    assert "the mean has shape (3,) and the covariance (4, 4), not (D,) and (D, D)" in refused()
    np.savez(path, mu=MEAN * np.nan, sigma=COVARIANCE)
    assert "values that are not finite" in refused()
    np.savez(path, mu=np.array([print]), sigma=COVARIANCE)  # would be unpickled
    assert "is not an .npz file of plain arrays" in refused()
    np.savez(path, mu=MEAN, sigma=COVARIANCE)
    path.write_bytes(path.read_bytes()[:-40])
    assert "is not an .npz file of plain arrays" in refused()
    with path.open("wb") as file:
        np.save(file, MEAN)
    assert "is not an .npz file of plain arrays" in refused()
