"""Micro-batches of one global batch get equal work, and the random numbers stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pmf.flow.draws import Draws, StandardDraws, StandardScalars, draw_scalars
from pmf.flow.mean_flow import GuidedRows, MeanFlow
from pmf.flow.options import MeanFlowOptions, PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow

MAX_T = 0.6
SETTINGS = {
    "paper": PixelMeanFlowOptions(),
    "few flow-matching rows": PixelMeanFlowOptions(data_proportion=0.25, label_drop=0.3),
    "none": PixelMeanFlowOptions(data_proportion=0.0),
    "all": PixelMeanFlowOptions(data_proportion=1.0),
    "uniform": PixelMeanFlowOptions(uniform_time_fraction=0.5, time_mean=0.0),
    "labels dropped anywhere": PixelMeanFlowOptions(label_drop_rows="any", label_drop=0.3),
}


def scalars_of(seed: int, rows: int) -> StandardScalars:
    return draw_scalars(rows, torch.Generator().manual_seed(seed))


def deal(scalars: StandardScalars, settings: PixelMeanFlowOptions, micro_batches: int) -> list[StandardScalars]:
    objective = PixelMeanFlow(settings, num_classes=1, perceptual_max_t=MAX_T)
    return objective.deal(scalars, micro_batches, range(micro_batches))


def shaped(scalars: StandardScalars, settings: PixelMeanFlowOptions) -> Draws:
    noise = torch.zeros(len(scalars.normal_t), 1, 1, 1)
    standard = StandardDraws(**vars(scalars), normal_e=noise, uniform_crop=torch.zeros(len(noise), 4))
    return PixelMeanFlow(settings, num_classes=1, perceptual_max_t=MAX_T).shape(standard)


MEAN_FLOWS = {
    "no guidance": MeanFlowOptions(),
    "kappa 0": MeanFlowOptions(guidance_scale=2.0, guidance_interval=(0.2, 0.5)),
    "kappa": MeanFlowOptions(guidance_scale=0.2, guidance_mixing=0.92, guidance_interval=(0.0, 0.4)),
    "kappa alone": MeanFlowOptions(guidance_scale=0.5, guidance_mixing=0.5, guidance_interval=(0.0, 0.4)),
    "few flow-matching rows": MeanFlowOptions(
        guidance_scale=2.0, guidance_mixing=0.5, guidance_interval=(0.2, 0.5), data_proportion=0.25, label_drop=0.4
    ),
    "no flow-matching rows": MeanFlowOptions(guidance_scale=2.0, guidance_interval=(0.2, 0.5), data_proportion=0.0),
}


def mean_flow_parts(
    objective: MeanFlow, scalars: list[StandardScalars]
) -> tuple[list[int], list[int], list[GuidedRows]]:
    """Of each micro-batch: rows of the guidance pass, dropped labels, draws."""
    factor, kappa = objective.unconditional_factor, objective.settings.guidance_mixing
    draws = []
    for part in scalars:
        noise = torch.zeros(len(part.normal_t), 1, 1, 1)
        standard = StandardDraws(**vars(part), normal_e=noise, uniform_crop=torch.zeros(len(noise), 4))
        draws.append(objective.shape(standard))
    rows = [
        bool(factor) * int(d.guided.sum()) + bool(kappa) * int(d.guided[d.num_flow_matching :].sum()) for d in draws
    ]
    return rows, [int(d.dropped.sum()) for d in draws], draws


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
@pytest.mark.parametrize("name", MEAN_FLOWS)
def test_mean_flows_micro_batches_differ_by_what_one_row_adds_at_most(name, micro_batches):
    objective = MeanFlow(MEAN_FLOWS[name], num_classes=1)
    most = bool(objective.unconditional_factor) + bool(objective.settings.guidance_mixing)
    for seed in range(20):
        dealt = objective.deal(scalars_of(seed, 32 * micro_batches), micro_batches, range(micro_batches))
        rows, dropped, draws = mean_flow_parts(objective, dealt)
        assert spread(rows) <= most
        assert spread(dropped) <= 1
        assert {d.num_flow_matching for d in draws} == {int(32 * objective.settings.data_proportion)}


def test_mean_flows_undealt_micro_batches_differ_by_more():
    objective = MeanFlow(MEAN_FLOWS["kappa"], num_classes=1)
    spreads = []
    for seed in range(20):
        rows, _, _ = mean_flow_parts(objective, [scalars_of(1000 * seed + number, 32) for number in range(8)])
        spreads.append(spread(rows))
    assert min(spreads) > 2


@pytest.mark.parametrize("name", MEAN_FLOWS)
def test_mean_flows_labels_are_dropped_whatever_the_row_needs(name):
    """Dropped rows are in the guidance interval as often as those that keep their label; fixed seeds."""
    settings = MEAN_FLOWS[name]
    objective, (start, end) = MeanFlow(settings, num_classes=1), settings.guidance_interval
    for flow_matching in (True, False):
        dropped, kept = [], []
        for seed in range(100):
            _, _, draws = mean_flow_parts(objective, objective.deal(scalars_of(seed, 128), 4, range(4)))
            for d in draws:
                inside = ((d.t >= start) & (d.t <= end)).tolist()
                count, first = int(d.dropped.sum()), d.num_flow_matching
                rows = range(first) if flow_matching else range(first, len(inside))
                dropped += [inside[row] for row in rows if row < count]
                kept += [inside[row] for row in rows if row >= count]
        if len(dropped) > 100 and 0 < sum(kept) < len(kept):
            rates = [sum(values) / len(values) for values in (dropped, kept)]
            deviation = (rates[1] * (1 - rates[1]) / len(dropped)) ** 0.5
            assert abs(rates[0] - rates[1]) < 4 * deviation  # four standard deviations of the smaller sample


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_differ_by_one_row_at_most(name, micro_batches):
    settings = SETTINGS[name]
    for seed in range(20):
        scalars = scalars_of(seed, 32 * micro_batches)
        dealt = [shaped(part, settings) for part in deal(scalars, settings, micro_batches)]
        assert settings.label_drop_rows == "any" or spread([int(d.dropped.sum()) for d in dealt]) <= 1
        assert spread([len(d.unconditional_rows) for d in dealt]) <= 1
        assert spread([len(d.perceptual_rows) for d in dealt]) <= 2
        assert {d.num_flow_matching for d in dealt} == {int(32 * settings.data_proportion)}


def test_undealt_micro_batches_differ_by_more():
    """Otherwise the test above would say nothing."""
    spreads = []
    for seed in range(20):
        parts = [scalars_of(1000 * seed + number, 32) for number in range(8)]
        spreads.append(spread([len(shaped(part, PixelMeanFlowOptions()).unconditional_rows) for part in parts]))
    assert min(spreads) > 1


@pytest.mark.parametrize("name", SETTINGS)
def test_dealing_permutes_rows_and_drops_and_changes_nothing_else(name):
    settings = SETTINGS[name]
    scalars = scalars_of(0, 96)
    dealt = deal(scalars, settings, 3)

    def table(parts: list[StandardScalars]) -> Tensor:
        """One row a row; the drop of the first rows belongs to none."""
        names = [field for field in vars(scalars) if field != "uniform_drop" or settings.label_drop_rows == "any"]
        return torch.stack([torch.cat([getattr(part, field) for part in parts]) for field in names], dim=1)

    assert sorted(table(dealt).tolist()) == sorted(table([scalars]).tolist())
    assert sorted(torch.cat([part.uniform_drop for part in dealt]).tolist()) == sorted(scalars.uniform_drop.tolist())
    # What was drawn as flow matching stays so: those rows come first in the global batch.
    first = int(32 * settings.data_proportion)
    flow_matching = torch.cat([part.normal_t[:first] for part in dealt])
    assert sorted(flow_matching.tolist()) == sorted(scalars.normal_t[: 3 * first].tolist())


def test_one_micro_batch_keeps_its_rows_in_order():
    scalars = scalars_of(0, 64)
    (dealt,) = deal(scalars, PixelMeanFlowOptions(), 1)
    ours, plain = shaped(dealt, PixelMeanFlowOptions()), shaped(scalars, PixelMeanFlowOptions())
    for name in ("t", "r", "omega", "t_min", "t_max", "dropped", "unconditional_rows", "perceptual_rows"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name


def test_labels_are_dropped_whatever_the_row_needs():
    """With no flow-matching rows the drop takes guided and unguided rows alike."""
    settings = PixelMeanFlowOptions(data_proportion=0.0, label_drop=0.3)
    dropped, kept = [], []
    for seed in range(200):
        for part in deal(scalars_of(seed, 64), settings, 4):
            draws = shaped(part, settings)
            inside = (draws.t >= draws.t_min) & (draws.t <= draws.t_max)
            count = int(draws.dropped.sum())
            dropped += inside[:count].tolist()
            kept += inside[count:].tolist()
    rates = [sum(values) / len(values) for values in (dropped, kept)]
    deviation = (rates[1] * (1 - rates[1]) / len(dropped)) ** 0.5
    assert abs(rates[0] - rates[1]) < 4 * deviation  # a fixed seed; four standard deviations of the smaller sample
