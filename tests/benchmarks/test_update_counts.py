"""The count of an update, against the arithmetic of Newton-Schulz by hand."""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensorMode

from benchmarks.update_counts import MOST_CHUNKS, MOST_TENSORS, Operations, count_update, kernels_of_lists
from pmf.config.network import network_of
from pmf.config.yaml_file import load_config
from pmf.net.sizes import PIXEL_TRANSFORMER, SIZES, NetworkSize
from pmf.optim.groups import parameter_groups
from tests.launch import ROOT


def test_products_are_those_of_newton_schulz_and_symmetric_ones_half_of_them(monkeypatch):
    # pMF-B/16 with 3 of its 24 blocks: counting takes as long as there are operations.
    numbers = {**SIZES["pmf_b_16"].numbers, "depth": 2, "head_depth": 1}
    monkeypatch.setitem(SIZES, "pmf_b_16", NetworkSize(PIXEL_TRANSFORMER, patch_size=16, **numbers))
    config = load_config(ROOT / "configs" / "pmf_b_16.yaml", ["data.path=."])
    with torch.device("meta"):
        network = network_of(config)
    matrices = next(group["params"] for group in parameter_groups(network, config.optimizer) if group["kind"] == "muon")
    sides = [sorted(matrix.shape) for matrix in matrices]
    # In each of five steps x x^T, the polynomial in it, and that times x.
    by_hand = sum(5 * 2 * (a * a * b + a**3 + a * a * b) for a, b in sides)
    # The first two products are symmetric: 6 x 7 / 2 of 36 tiles at 768 rows; what has fewer than 512 goes by torch.
    saved = sum(5 * 2 * (a * a * b + a**3) for a, b in sides if a == 768) * 15 / 36
    assert {a for a, _ in sides if a >= 512} == {768}
    by_torch, by_kernel = (count_update(config, kernel=kernel) for kernel in (False, True))
    assert by_torch.flops == by_hand
    assert by_kernel.flops == by_hand - saved
    assert by_torch.kernels == by_kernel.kernels


def test_an_operation_on_lists_is_as_many_kernels_as_its_tensors_and_their_chunks_need():
    small, large = torch.empty(10, device="meta"), torch.empty(2**26, device="meta")
    assert [kernels_of_lists([small] * count, 1) for count in (1, MOST_TENSORS[0], MOST_TENSORS[0] + 1)] == [1, 1, 2]
    assert kernels_of_lists([small] * MOST_TENSORS[0], 2) == 2, "more lists, fewer tensors"
    assert kernels_of_lists([large], 1) == -(-1024 // MOST_CHUNKS)


def test_bytes_are_those_that_are_read_and_written():
    with FakeTensorMode():
        one, other = ([torch.empty(10, device="cuda") for _ in range(3)] for _ in range(2))
        with Operations() as operations:
            torch._foreach_lerp_(one, other, 0.5)  # reads two, writes one
            torch._foreach_mul(one, 2.0)  # reads one, writes one
            one[0].add(other[0])
    assert operations.count.bytes == 4 * 10 * (3 * 3 + 3 * 2 + 3)
