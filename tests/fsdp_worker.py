"""Three steps in float64, plain or sharded, and what they leave behind; under torchrun for several ranks."""

import dataclasses
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor

from pmf.parallel import complete, local, placed_like
from pmf.training import Trainer
from tests.test_training import tiny_config

STEPS = 3
COMMON = ["training.global_batch_size=32", "training.gradient_clip=0.5", "optimizer.weight_decay=0.1"]


def to_double(value):
    """Tensors and dataclasses of tensors, as LossModule takes them."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{name: to_double(part) for name, part in vars(value).items()})
    return value


def start_elsewhere(trainer: Trainer) -> None:
    """Gates and output layers start at zero and hide most gradients; move all weights, equally on all ranks."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.state.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            local(parameter).add_(local(placed_like(parameter, noise)), alpha=0.1)


def run(folder: Path, *overrides: str) -> dict[str, Tensor]:
    """Gradients that the first optimizer step sees, the norms before clipping, and the state after STEPS steps."""
    trainer = Trainer(tiny_config(folder, *COMMON, *overrides))
    trainer.module.register_forward_pre_hook(lambda module, inputs: tuple(map(to_double, inputs)))
    start_elsewhere(trainer)
    network = trainer.state.network
    found: dict[str, Tensor] = {}
    step = trainer.state.optimizer.step

    def look_and_step(*args, **kwargs):
        if not found:
            gradients = {f"gradient/{name}": p.grad for name, p in network.named_parameters()}
            found.update({name: g.clone() for name, g in complete(gradients, everywhere=True).items()})
        return step(*args, **kwargs)

    trainer.optimizer.optimizer.step = look_and_step
    batches = iter(trainer._batches())
    for _ in range(STEPS):
        trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
    found["grad_norm"] = torch.tensor(trainer.state.progress.window_sums["grad_norm"], dtype=torch.float64)
    for stem, tensors in trainer.state.to_checkpoint(trainer.config, trainer.world.size).tensors.items():
        found |= {f"{stem}/{name}": tensor.clone() for name, tensor in tensors.items()}
    found["held"] = torch.tensor(sum(local(p).numel() for p in network.parameters()))
    found["world"] = torch.tensor([trainer.world.size, trainer.accumulation])
    return found


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    output, *variants = sys.argv[1:]
    for variant in variants:
        results = run(Path(output, "runs", variant), *variant.split(","))
        if torch.distributed.get_rank() == 0:
            save_file(results, Path(output, f"{variant}.safetensors"))
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.destroy_process_group()
