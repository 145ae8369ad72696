"""Every option of a run: typed, documented, checked. The defaults are the paper's pMF-B/16 recipe.

The sections of a single room stand in that room's ``options.py``; those of the run as a whole stand here.

A YAML under ``configs/`` states only what differs. Reading files is ``yaml_file.py``'s work; this module
imports neither torch nor yaml, so that a typo is reported in milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, FiniteFloat, SerializeAsAny, model_validator

from pmf.config.sampling_options import PartNames, Use
from pmf.data.options import DataConfig, network_shape, pixel_space, section_problems
from pmf.distributed.batching import nearest_divisors
from pmf.errors import CrossFieldError
from pmf.flow.objective import ObjectiveOptions, default_options, read_options
from pmf.flow.options import SAMPLERS
from pmf.net.options import ModelConfig
from pmf.optim.options import EmaConfig, OptimizerConfig, ema_names
from pmf.options import (
    Interval,
    NonNegative,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    Whole,
    number_name,
    one_or_more,
)
from pmf.perceptual.options import PerceptualConfig
from pmf.tables import Row, one_of


class TrainingConfig(Section):
    """Batch, length, precision, and what is written when."""

    global_batch_size: Positive = 1024
    """Images per optimizer step over all ranks: micro_batch_size x accumulation x ranks, always."""
    micro_batch_size: Positive | None = None
    """Images per forward pass on one rank; null means global_batch_size / ranks (no accumulation)."""
    max_steps: Positive | None = None
    """Length of the run in optimizer steps. Give this or epochs."""
    epochs: PositiveFloat | None = None
    """Length of the run in passes over the data, those with another batch size included. Give this or max_steps."""
    seed: NonNegative = 42
    """Weights at start, order of samples and every random draw are functions of it."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    """Autocast of the matrix products; weights and residual stream stay float32. fp16 scales the loss: for GPUs without
    bf16, and for comparison with runs in fp16."""
    tf32: bool = True
    """Allow TF32 for the float32 matrix products that remain on CUDA."""
    compile: Literal["auto", True, False] = "auto"
    """Compile the parts of the network and the losses with torch.compile. auto: on CUDA, where Triton and a C compiler
    are there and du/dt is not taken by jvp; the run's first lines say so. true: in any case, on a CPU with a C++
    compiler."""
    activation_checkpointing: bool = False
    """Keep only the input of each transformer block and compute the block again for its gradients: less memory."""
    static_shapes: bool = False
    """Pad the guidance pass to a constant number of rows: more work, for compilers that take changing shapes badly."""
    cuda_graph: Literal["step", True, False] = False
    """Record forward and backward of a micro-batch as a CUDA graph for each size of its passes: less work for the host
    and up to twice the memory of activations; the run is the same to the bit. With ``step`` the update is recorded too,
    which rounds otherwise and takes the memory of some more copies of the weights. One process, bf16 or no mixed
    precision."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Weights whole on every rank (ddp), in shards over all (fsdp) or over groups of them (hsdp): docs/fsdp.md."""
    shard_size: Positive | None = None
    """Ranks that share one copy of the weights under hsdp; null: those of one machine."""
    gradient_clip: PositiveFloat | None = None
    """Largest global gradient norm; null leaves gradients alone, as the paper does."""
    output_dir: PathText = "runs/default"
    """The run folder."""
    log_every: Positive = 50
    """Steps between lines in metrics.jsonl."""
    sample_every: NonNegative = 5000
    """Steps between sample grids; 0 never."""
    checkpoint_every: Positive = 5000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: Positive = 3
    """Newest checkpoints kept."""
    num_threads: Positive | None = None
    """CPU threads of torch per process; null on a CPU leaves one core to other programs. Processes share the cores."""
    step_timeout: PositiveFloat = 900
    """Seconds; a step that takes longer (compilation is in the first) ends the run, naming who hangs and where."""
    group_timeout: PositiveFloat = 1800
    """Seconds that a process waits for the others, sampling and evaluation included."""


class SamplingConfig(Section):
    """How images are generated, in grids during training and by eval.py.

    Each option is declared here and nowhere else: flags, records and sweeps are made of these lines.
    """

    omega: Annotated[FiniteFloat, Field(ge=1)] = 8.5
    """Guidance scale."""
    interval: Annotated[Interval, PartNames(("t_min", "t_max"))] = (0.1, 0.7)
    """Guidance interval [t_min, t_max]."""
    num_steps: Positive = 1
    """Network evaluations per image."""
    sampler: Annotated[str, one_of(SAMPLERS)] = "equal_steps"
    """How these steps lead from noise to an image: equal_steps in t, as in the papers, or another that was added."""
    noise: Literal["ours", "official"] = "ours"
    """How image i's noise is drawn: ours, or official, as in the PyTorch evaluations of pMF and iMF (seed 42)."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the network's products: float32 (TF32 as training.tf32 has it), or bf16 by autocast, for GPUs."""
    ema: Annotated[str, BeforeValidator(number_name), Use.WEIGHTS] = "2000"
    """Which weights: a half-life in kimg, a decay, or "online" (as in checkpoint file names ema_*)."""
    batch_size: Annotated[Positive, Use.BATCHES] = 64
    """Images per forward pass and rank."""
    final_images: Annotated[NonNegative, Use.TRAINING] = 0
    """PNGs written into samples/final when training ends, class-balanced; 0 none."""


class EvaluationConfig(Section):
    """FID during training; see docs/evaluation.md."""

    every_images: NonNegative = 0
    """Images between evaluations; 0 never."""
    num_images: Annotated[Whole, Field(ge=10)] = 10_000
    """Images per evaluation, class-balanced, sampled as the sampling section says."""
    reference: PathText | None = None
    """A statistics file (.npz), digits, a config (.yaml) for its data, or a folder of images, as for eval.py fid."""
    extractor: PathText | None = None
    """inception, digits, package.module:callable or a TorchScript file; null: by the images' shape."""
    extractor_weights: PathText | None = None
    """File of Inception's weights; null: in $TORCH_HOME, else downloaded."""


# A row is a function of a TrackedRun (training/trackers.py) that returns a tracker of Accelerate's, not yet started.
TRACKERS: dict[str, Row] = {
    "wandb": "pmf.training.tracker_kinds:WandbRun",
    "tensorboard": "pmf.training.tracker_kinds:TensorBoardFiles",
    "trackio": "pmf.training.tracker_kinds:TrackioRun",
}


class TrackingConfig(Section):
    """Where metrics, sample grids and the config go besides the run folder; see docs/tracking.md."""

    trackers: Annotated[list[Annotated[str, one_of(TRACKERS)]], BeforeValidator(one_or_more)] = Field(default=[])
    """Any of wandb, tensorboard and trackio, or others that were added; metrics.jsonl is always written."""
    project: str = "pmf"
    """Project there."""
    name: str | None = None
    """Run name there; null takes the run folder's."""
    wandb: Annotated[bool, Field(exclude=True)] = False
    """Older spelling of trackers: wandb."""

    @model_validator(mode="before")
    @classmethod
    def _older_spelling(cls, values: Any) -> Any:
        """Configs with ``wandb: true`` are those with ``trackers: wandb``."""
        given = one_or_more(values.get("trackers", [])) if isinstance(values, dict) else None
        if not isinstance(given, list) or values.get("wandb") is not True:
            return values
        others = {key: value for key, value in values.items() if key != "wandb"}
        return {**others, "trackers": [*given, *([] if "wandb" in given else ["wandb"])]}


class Config(Section):
    """One run."""

    model: ModelConfig = ModelConfig()
    objective: Annotated[SerializeAsAny[ObjectiveOptions], BeforeValidator(read_options)] = Field(
        default_factory=default_options
    )
    perceptual: PerceptualConfig = PerceptualConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_across_fields(self) -> Config:
        for key, problem in cross_field_problems(self):
            raise CrossFieldError(key, problem)
        return self


def cross_field_problems(config: Config) -> list[tuple[str, str]]:
    """Values that are fine alone and wrong together: the key to point at, and what is wrong with it."""
    problems: list[tuple[str, str]] = []
    training, optimizer, sampling = config.training, config.optimizer, config.sampling
    averages = ema_names(config.ema)
    if (training.max_steps is None) == (training.epochs is None):
        problems.append(("training.max_steps", "or training.epochs must be given, and not both"))
    micro = training.micro_batch_size
    if micro is not None and training.global_batch_size % micro:
        problems.append(
            (
                "training.micro_batch_size",
                f"is {micro}, which does not divide training.global_batch_size {training.global_batch_size}; "
                f"nearest divisors: {nearest_divisors(training.global_batch_size, micro)}",
            )
        )
    if sampling.interval[0] >= sampling.interval[1]:
        bounds = list(sampling.interval)
        problems.append(("sampling.interval", f"is {bounds}; it must be [t_min, t_max] with t_min < t_max"))
    if optimizer.schedule == "constant" and optimizer.warmup_steps:
        problems.append(("optimizer.warmup_steps", "needs optimizer.schedule: warmup_constant or warmup_cosine"))
    if training.max_steps is not None and optimizer.warmup_steps > training.max_steps:
        problems.append(
            (
                "optimizer.warmup_steps",
                f"is {optimizer.warmup_steps}, more than training.max_steps {training.max_steps}; lower it",
            )
        )
    of_objective = config.objective.problems(compiled=training.compile is True, parallel=training.parallel)
    problems += [(f"objective.{key}", problem) for key, problem in of_objective]
    problems += _sampling_problems(config)
    if training.parallel != "ddp" and training.mixed_precision == "fp16":
        problems.append(("training.mixed_precision", "is fp16, which needs training.parallel: ddp; use bf16 or no"))
    if training.cuda_graph and training.mixed_precision == "fp16":
        problems.append(("training.cuda_graph", "is on, but mixed_precision fp16 changes its scale; use bf16 or no"))
    if training.shard_size and training.parallel != "hsdp":
        problems.append(("training.shard_size", f"needs training.parallel: hsdp; it is {training.parallel}"))
    problems += section_problems(config.data)
    for name in ("lpips", "convnext"):
        if getattr(config.perceptual, name) and not config.objective.takes_perceptual:
            problem = f"is true, but objective.name {config.objective.name} has no perceptual terms; set it to false"
            problems.append((f"perceptual.{name}", problem))
        elif getattr(config.perceptual, name) and network_shape(config.data) != pixel_space(config.data):
            problem = f"is true, but it looks at pixels, and data.kind {config.data.kind} holds none; set it to false"
            problems.append((f"perceptual.{name}", problem))
    if config.evaluation.every_images and not config.evaluation.reference:
        problems.append(("evaluation.reference", "is missing; evaluation.every_images needs something to compare with"))
    if len(set(config.tracking.trackers)) != len(config.tracking.trackers):
        problems.append(("tracking.trackers", f"names one tracker twice: {', '.join(config.tracking.trackers)}"))
    if len(set(averages)) != len(averages):
        problems.append(("ema.half_lives_kimg", f"and ema.decays name one average twice: {', '.join(averages)}"))
    if sampling.ema not in (*averages, "online"):
        problems.append(("sampling.ema", f'is "{sampling.ema}"; choose one of: {", ".join((*averages, "online"))}'))
    return problems


def _sampling_problems(config: Config) -> list[tuple[str, str]]:
    """Sampling options that the method leaves no choice of, and have another value."""
    sampling, objective = config.sampling.model_dump(mode="json"), config.objective
    return [
        (
            f"sampling.{name}",
            f"is {sampling[name]}, but objective.name {objective.name} {what_it_does}; set it to {value}",
        )
        for name, (value, what_it_does) in objective.fixed_sampling.items()
        if sampling[name] != value
    ]


def sampling_section() -> type[Section]:
    """The sampling section, as the config declares it at this moment."""
    return cast(type[Section], Config.model_fields["sampling"].annotation)


def as_plain(config: Config) -> dict[str, Any]:
    """Nested dicts, lists and scalars: what config.yaml and state.json hold."""
    return config.model_dump(mode="json")
