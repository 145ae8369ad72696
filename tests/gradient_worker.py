"""Run on one and two processes by tests: averaged gradients of one step, and the world they come from."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pmf.training.trainer import Trainer
from tests.runs import tiny_config

if __name__ == "__main__":
    output, run, config, *overrides = sys.argv[1:]
    trainer = Trainer(tiny_config(Path(run), "training.global_batch_size=32", *overrides, config=config))
    gradients = {}
    trainer.state.optimizer.move = lambda _rates: gradients.update(
        {name: p.grad.clone() for name, p in trainer.state.network.named_parameters()}
    )
    # Gates and output layers start at zero and hide most gradients; start elsewhere, equally on all ranks.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.state.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    batches = iter(trainer._batches())
    trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
    if trainer.world.is_main:
        save_file({**gradients, "world_size": torch.tensor(trainer.world.size)}, output)
    trainer.accelerator.end_training()
