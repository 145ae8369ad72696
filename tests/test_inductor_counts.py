"""Memory traffic of the compiled blocks without a GPU: kernels and bytes of the code that inductor writes for one."""

from __future__ import annotations

import pytest

from benchmarks.fake_inductor import fake_gpu
from benchmarks.inductor_counts import Graph, Rows, count_block
from benchmarks.surroundings_counts import calls_of_a_micro_batch, count
from pmf.config.yaml_file import load_config
from pmf.net import products
from tests.launch import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")  # inductor's own

ROWS = Rows.of(64)
MEGABYTE = 10**6
# Kernels, and megabytes that inductor's own kernels read and write, for a block at 64 rows (72 of guidance, 32 of
# tangents): what was counted with torch 2.11 and 2.15, and 3 % more bytes, less than an activation of the block's width
# in bfloat16 (27 MB) that is read and written once more.
BOUNDS = {
    # The blocks of iMF are these too.
    "pmf_b_16": {"guidance": (14, 861), "value": (14, 772), "dual": (27, 1686), "backward": (26, 1458)},
    "dit_b_2": {"guidance": (21, 681), "value": (24, 617), "dual": (35, 1252), "backward": (33, 1500)},
}


def beyond(graphs: dict[str, Graph], bounds: dict[str, tuple[int, int]]) -> list[str]:
    """What graphs exceed; every graph has a bound."""
    wrong = []
    for name, graph in graphs.items():
        kernels, megabytes = bounds[name]
        if graph.count() > kernels:
            wrong.append(f"{name}: {graph.count()} kernels")
        if graph.own_bytes() > megabytes * MEGABYTE:
            wrong.append(f"{name}: {graph.own_bytes() / MEGABYTE:.0f} MB")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("model", BOUNDS)
def test_blocks_read_and_write_no_more_than_they_did(model):
    graphs = count_block(model, ROWS)
    assert set(graphs) == set(BOUNDS[model])
    assert not beyond(graphs, BOUNDS[model])
    assert all(graph.count("batched") == 0 for graph in graphs.values()), "nothing of T x T is stored"


@pytest.mark.slow
def test_the_way_of_cpus_is_noticed(monkeypatch):
    """Separate products, and queries whose heads stand before tokens."""
    monkeypatch.setattr(products, "suits_gpus", lambda _: False)
    wrong = beyond(count_block("pmf_b_16", ROWS, passes=("guidance",)), BOUNDS["pmf_b_16"])
    assert len(wrong) == 2, "kernels and bytes"


@pytest.mark.slow
def test_what_surrounds_the_blocks_is_fewer_kernels_when_compiled():
    config = load_config(ROOT / "configs" / "digits_imf.yaml", ["training.mixed_precision=bf16"])
    counts: dict[str, tuple[int, int]] = {}
    with fake_gpu() as mode:
        for call in calls_of_a_micro_batch(config, 16, mode):
            eager, compiled = count(call, mode)
            counts[call.name] = (eager.kernels, compiled.kernels)
    assert len(counts) == 6 and all(compiled < eager for eager, compiled in counts.values()), counts
    assert counts["ImprovedMeanFlow._mix"] == (5, 1), "z and v_t: five operations, one kernel"
