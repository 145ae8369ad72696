"""From a config to what a training step works on: network, objective, optimizer and averages, whole or in shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pmf.config.sections import Config
from pmf.costs.arithmetic import StepFlops, expected_shares, perceptual_flops, step_flops
from pmf.distributed.shards import shard_weights
from pmf.distributed.world import World
from pmf.flow.objective import Objective, create_objective
from pmf.net.sizes import create_network
from pmf.optim.ema import WeightAverages
from pmf.optim.groups import create_optimizer
from pmf.perceptual.distances import create_distances
from pmf.randomness import Stream, torch_generator
from pmf.training.preflight import require_storage
from pmf.training.state import TrainingState, checkpoint_bytes
from pmf.training.step import LossModule


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The moving parts of a run.

    Attributes:
        module, optimizer: what Accelerate made of them; the step uses these.
        state: the same network and optimizer as they are, with the averages and the progress; checkpoints use it.
        flops: of a step, for each image.
    """

    module: nn.Module
    optimizer: Any
    objective: Objective[Any, Any]
    state: TrainingState
    flops: StepFlops


def assemble(
    config: Config,
    accelerator: Any,
    world: World,
    *,
    micro_batch_size: int,
    max_steps: int,
    say: Callable[[str], None],
) -> Assembly:
    """Build everything on its device; called by all ranks.

    Args:
        accelerator: Accelerate's.
        micro_batch_size: images per forward pass.
        max_steps: of the whole run, for the checkpoints that it will write.
        say: told which perceptual weights are used.

    Raises:
        UserError: perceptual weights are missing, the disk is too small, or the weights cannot be sharded as asked.
    """
    training = config.training
    perceptual = world.main_first(lambda: create_distances(config.perceptual, world.device, say))  # may download
    network = create_network(
        config.model.name,
        image_size=config.data.image_size,
        num_classes=config.data.num_classes,
        channels=config.data.channels,
        generator=torch_generator(Stream.WEIGHTS, training.seed),
    ).to(world.device)
    require_storage(training, checkpoint_bytes(network, config), max_steps)
    if training.activation_checkpointing:
        network.checkpoint_blocks()
    if training.compile:
        network.compile_blocks(static_shapes=training.static_shapes)
    objective = create_objective(
        config.objective,
        num_classes=config.data.num_classes,
        perceptual=perceptual,
        perceptual_max_t=config.perceptual.max_t,
        static_shapes=training.static_shapes,
    )
    objective.require_network(network, compiled=training.compile, parallel=training.parallel)
    module = LossModule(network, objective)
    sharded = training.parallel != "ddp" and world.size > 1
    if sharded:
        shard_weights(module, training.parallel, training.shard_size, world)
    optimizer = create_optimizer(network, config.optimizer, world)
    averages = WeightAverages(network, config.ema, world)
    flops = step_flops(
        network,
        expected_shares(config.objective, config.perceptual.max_t, micro_batch_size=micro_batch_size),  # type: ignore[arg-type]
        perceptual_flops(perceptual, config.data.channels) if perceptual else 0,
    )
    return Assembly(
        # Shards stay where they are, and "evaluation" is Accelerate's word for autocast alone, without DDP.
        module=accelerator.prepare_model(module, device_placement=not sharded, evaluation_mode=sharded),
        optimizer=accelerator.prepare_optimizer(optimizer, device_placement=not sharded),
        objective=objective,
        state=TrainingState(network, optimizer, averages, accelerator.scaler),
        flops=flops,
    )
