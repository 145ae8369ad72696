"""A small network with its optimizer, averages and updates, which may be recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.optim.options import EmaConfig, OptimizerConfig
from pmf.training.captured import Recorder
from pmf.training.update import WeightUpdate
from tests.optim.reference import normal

RATES = (0.0, 1e-2, 2e-2, 3e-2, 1e-2, 5e-3)
BATCH = 64
CLIP = 5.0
SPIKE = 3
"""The update whose gradient is a hundred times as large; the others are not clipped."""


class Updated:
    """A network with its optimizer, averages and updates."""

    def __init__(
        self,
        name: str,
        recorder: Recorder | None,
        *,
        blocks: int = 2,
        sides: tuple[int, int] = (6, 4),
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        newton_schulz: str = "float32",
    ) -> None:
        layers = [layer for _ in range(blocks) for layer in (nn.Linear(*sides), nn.Linear(*sides[::-1]))]
        self.network = nn.Sequential(*layers).to(device, dtype)
        for seed, parameter in enumerate(self.network.parameters()):
            parameter.data.copy_(normal(*parameter.shape, seed=seed))
        self.optimizer = create_optimizer(
            self.network, OptimizerConfig(name=name, weight_decay=0.1, newton_schulz=newton_schulz)
        )
        self.averages = WeightAverages(self.network, EmaConfig(half_lives_kimg=[0.1, 500], decays=[0.75]))
        self.update = WeightUpdate(self.network, self.optimizer, self.averages, gradient_clip=CLIP, recorder=recorder)
        self.images = 0

    def step(self, number: int, lr: float) -> None:
        for seed, parameter in enumerate(self.network.parameters(), start=1000 * number):
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_((10 if number == SPIKE else 0.1) * normal(*parameter.shape, seed=seed))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        self.images += BATCH
        self.update(norm, float(norm), images_seen=self.images, images_per_step=BATCH)

    def train(self, steps: range = range(len(RATES))) -> Updated:
        for number in steps:
            self.step(number, RATES[number])
        return self

    def state(self) -> dict[str, Tensor]:
        averages = {f"{name}/{key}": t for name in self.averages.names for key, t in self.averages.state(name).items()}
        return {
            **{name: parameter.detach() for name, parameter in self.network.named_parameters()},
            **self.optimizer.named_state(self.network),
            **averages,
        }
