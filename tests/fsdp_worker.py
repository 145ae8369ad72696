"""Three steps, plain or sharded, and what they leave behind; under torchrun for several ranks."""

import dataclasses
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor

from pmf.distributed.shards import complete, local, placed_like
from pmf.training.trainer import Trainer
from tests.runs import tiny_config

STEPS = 3
COMMON = [
    "training.global_batch_size=8",
    "training.micro_batch_size=2",
    "training.gradient_clip=0.5",
    "optimizer.weight_decay=0.1",
]


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


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """What a checkpoint would hold; empty on all ranks but the main one."""
    files = trainer.state.to_checkpoint(trainer.config, trainer.world.size).tensors
    return {f"{stem}/{name}": tensor.clone() for stem, tensors in files.items() for name, tensor in tensors.items()}


def poison_one_rank(trainer: Trainer) -> None:
    """Make the losses of the last rank NaN from now on."""
    if trainer.world.rank == trainer.world.size - 1:
        original = trainer.train_step.objective.adaptive
        trainer.train_step.objective.adaptive = lambda loss: original(loss) * float("nan")


def run(folder: Path, *overrides: str, config: str = "digits") -> dict[str, Tensor]:
    """Gradients that the first optimizer step sees, the norms before clipping, and the state after STEPS steps."""
    trainer = Trainer(tiny_config(folder, *COMMON, *overrides, config=config))
    if torch.get_default_dtype() == torch.float64:
        trainer.train_step.module.register_forward_pre_hook(lambda _, inputs: tuple(map(to_double, inputs)))
    start_elsewhere(trainer)
    network = trainer.state.network
    found: dict[str, Tensor] = {}
    move = trainer.state.optimizer.move

    def look_and_move(rates):
        if not found:
            gradients = {f"gradient/{name}": p.grad for name, p in network.named_parameters()}
            found.update({name: g.clone() for name, g in complete(gradients, everywhere=True).items()})
        move(rates)

    trainer.state.optimizer.move = look_and_move
    batches = iter(trainer._batches())
    for _ in range(STEPS):
        trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
    found["grad_norm"] = torch.tensor(trainer.state.progress.window_sums["grad_norm"], dtype=torch.float64)
    found |= state_of(trainer)
    if trainer.world.size > 1:
        trainer.state.progress.skipped = 0
        poison_one_rank(trainer)
        trainer.train_step([next(batches) for _ in range(trainer.accumulation)])
        assert trainer.state.progress.skipped == 1
        after = state_of(trainer)
        assert all(torch.equal(found[name], after[name]) for name in after if not name.startswith("optimizer/step"))
    found["held"] = torch.tensor(sum(local(p).numel() for p in network.parameters()))
    found["world"] = torch.tensor([trainer.world.size, trainer.accumulation])
    return found


if __name__ == "__main__":
    output, config, *variants = sys.argv[1:]
    for variant in variants:  # autocast leaves float64 alone
        torch.set_default_dtype(torch.float32 if "bf16" in variant else torch.float64)
        results = run(Path(output, "runs", variant), *variant.split(","), config=config)
        if torch.distributed.get_rank() == 0:
            save_file(results, Path(output, f"{variant}.safetensors"))
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.destroy_process_group()
