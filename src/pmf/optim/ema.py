"""Averages of the weights over training, several at once.

A rule of an average is a function of (its number, images seen, images per step) and returns beta, the weight of the
old average in one update. A new rule stands here or in a file of its own, with a row in ``AVERAGES`` of
pmf/optim/options.py; ``ema.others`` then takes its name and number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pmf.distributed.owners import assign_owners, collect
from pmf.distributed.shards import is_sharded, local, placed_like
from pmf.distributed.world import ALONE, World
from pmf.errors import UserError
from pmf.optim.options import AVERAGES, EmaConfig, kept_averages
from pmf.optim.rates import Rates, approach_
from pmf.tables import find_row
from pmf.tensors import require_same_tensors


def half_life_decay(half_life_kimg: float, images_seen: int, images_per_step: int) -> float:
    """Weight of the old average in one update, the "edm" rule of pMF utils/ema_util.py.

    beta = 0.5^(images_per_step / H), H = min(1000 half_life_kimg, 0.05 images_seen): early on the half-life is a
    twentieth of the run so far, so that the average soon forgets the initial weights. The official code always counts
    1024 images a step; this counts the true ones.

    Args:
        half_life_kimg: in thousands of images, > 0.
        images_seen: images trained on, those of this update included.
        images_per_step: the global batch.

    Returns:
        beta in [0, 1).
    """
    half_life = min(1000.0 * half_life_kimg, 0.05 * images_seen)
    return 0.5 ** (images_per_step / max(half_life, 1e-8))


def constant_decay(decay: float, _images_seen: int, _images_per_step: int) -> float:
    """Weight of the old average in one update: always ``decay``, in [0, 1), whatever the batch size."""
    return decay


class WeightAverages:
    """The float32 averages of all parameters that the ema section asks for; each starts as the weights.

    Averages are of the parameters as they stand, frozen ones included, so that each is a complete set of weights. With
    several processes each keeps and updates those of the parameters that it owns (:mod:`pmf.distributed.owners`),
    or of its shards (:mod:`pmf.distributed.shards`).
    """

    def __init__(self, network: nn.Module, config: EmaConfig, world: World = ALONE) -> None:
        """Copy the network's parameters, on their device, once per average."""
        self._world = world
        averages = kept_averages(config)
        self._rules = {average.name: (find_row(AVERAGES, average.rule), average.value) for average in averages}
        parameters = dict(network.named_parameters())
        owners = assign_owners([parameter.numel() for parameter in parameters.values()], world.size)
        self._owners = dict(zip(parameters, owners, strict=True))
        self._shapes = {key: torch.empty(p.shape, dtype=torch.float32, device="meta") for key, p in parameters.items()}
        own = {key: p.detach() for key, p in parameters.items() if self._is_mine(key, p)}
        self._tensors = {name: {key: p.float().clone() for key, p in own.items()} for name in self._rules}

    @property
    def names(self) -> list[str]:
        """``500`` for a half-life of 500 kimg, ``0.9999`` for a decay: those of :func:`pmf.optim.options.ema_names`."""
        return list(self._tensors)

    def update(self, network: nn.Module, images_seen: int, images_per_step: int) -> None:
        """Average in the weights after an optimizer step: average = beta average + (1 - beta) weights.

        Args:
            network: the one that the averages were made of.
            images_seen: images trained on, those of this step included.
            images_per_step: the global batch.

        Raises:
            UserError: a rule gives a beta that is not in [0, 1].
        """
        self.move(network, self.rates(images_seen, images_per_step))

    def rates(self, images_seen: int, images_per_step: int) -> dict[str, float]:
        """1 - beta of each average in the update after a step, for :meth:`move`; see :meth:`update`."""
        return {name: 1 - self._beta(name, images_seen, images_per_step) for name in self._tensors}

    @torch.no_grad()
    def move(self, network: nn.Module, rates: Rates) -> None:
        """Average in the weights. Where rates are numbers, one fused operation moves all averages.

        Args:
            network: the one that the averages were made of.
            rates: those of :meth:`rates`, or tensors of their values.
        """
        weights = [local(p.detach()).float() for key, p in network.named_parameters() if self._is_mine(key, p)]
        averages = [[local(tensor) for tensor in tensors.values()] for tensors in self._tensors.values()]
        if weights and averages:
            approach_(averages, weights, [rates[name] for name in self._tensors])

    def state(self, name: str, *, everywhere: bool = False) -> dict[str, Tensor]:
        """One average by parameter name; called by all ranks.

        Args:
            everywhere: for every rank; otherwise for the main one, and the others get an empty dict.

        Returns:
            With one process the average's own tensors, otherwise copies on the CPU.
        """
        return collect(self._world, self._tensors[name], self._shapes, self._owners, everywhere=everywhere)

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite one average, bit for bit.

        Raises:
            UserError: names or shapes differ; names the first of them.
        """
        require_same_tensors(
            self._shapes,
            tensors,
            intro=f"average '{name}' is of another run",
            advice="check model.name, data.image_size and data.num_classes",
        )
        for key, tensor in self._tensors[name].items():
            tensor.copy_(placed_like(tensor, tensors[key]))

    def _is_mine(self, key: str, parameter: Tensor) -> bool:
        return is_sharded(parameter) or self._owners[key] == self._world.rank

    def _beta(self, name: str, images_seen: int, images_per_step: int) -> float:
        rule, value = self._rules[name]
        beta = rule(value, images_seen, images_per_step)
        if not 0 <= beta <= 1:
            raise UserError(f"ema.others: {name} gives the old average the weight {beta}, which is not in [0, 1]")
        return beta
