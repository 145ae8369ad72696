"""Every option of a run: typed, documented, checked. The defaults are the paper's pMF-B/16 recipe.

A YAML under ``configs/`` states only what differs. Reading files is ``configfile.py``'s work; this module
imports neither torch nor yaml, so that a typo is reported in milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from pmf.cross_checks import cross_field_problems
from pmf.errors import CrossFieldError
from pmf.option_types import (
    Betas,
    Decay,
    Files,
    Fraction,
    Interval,
    NonNegative,
    NonNegativeFloat,
    PathText,
    Positive,
    PositiveFloat,
    Whole,
    number_name,
)


class Section(BaseModel):
    """Frozen, keyword-only, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Which network."""

    name: str = "pmf_b_16"
    """A row of the table in pmf/net/sizes.py."""


class ObjectiveConfig(Section):
    """The training objective: times, noise, guidance, weighting."""

    parameterization: Literal["x", "u", "linear", "edm", "scm"] = "x"
    """What the heads predict: the image (the paper's choice), the velocity, or the image behind a pre-conditioner."""
    derivative: Literal["auto", "jvp", "dual"] = "auto"
    """How du/dt is taken: torch.func.jvp, tangents beside the primal, or auto: dual if the network can, else jvp."""
    data_proportion: Fraction = 0.5
    """Share of each micro-batch trained as plain flow matching (r = t)."""
    r_distribution: Literal["drawn", "zero"] = "drawn"
    """r of the other rows: drawn like t, or always 0 (an ablation)."""
    time_mean: FiniteFloat = 0.8
    """Mean of the normal under the logit-normal time distribution (P_mean)."""
    time_std: PositiveFloat = 0.8
    """Its standard deviation (P_std)."""
    uniform_time_fraction: Fraction = 0.0
    """Probability that a row's t and r are uniform instead (0.1 in the recipe of the H models)."""
    noise_scale: PositiveFloat = 1.0
    """Standard deviation of the noise at t = 1, in units of the [-1, 1] image range."""
    guidance_beta: NonNegativeFloat = 1.0
    """Exponent of the power law of training guidance scales; larger favours small scales."""
    guidance_max: PositiveFloat = 7.0
    """Training guidance scales lie in [1, 1 + guidance_max]."""
    label_drop: Fraction = 0.1
    """Probability of the null label."""
    label_drop_rows: Literal["first", "any"] = "first"
    """Which rows lose it: the first ones, as many as a drawn count (as released), or any, each drawn by itself."""
    adaptive_power: NonNegativeFloat = 1.0
    """Exponent p of the adaptive weight 1 / (loss + epsilon)^p."""
    adaptive_epsilon: PositiveFloat = 0.01
    """The epsilon of the adaptive weight."""


class PerceptualConfig(Section):
    """Distances of the denoised image from the true one; see docs/perceptual.md for weights and licences.

    A file is a local path (.safetensors, or a .pth pickle whose code is never run), a URL, or a model on the Hugging
    Face hub (owner/name, or a timm name).
    """

    lpips: bool = False
    """LPIPS over VGG16."""
    lpips_factor: PositiveFloat = 0.4
    """Factor of the LPIPS term, after its adaptive weight."""
    lpips_weights: Files = [
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    ]
    """One file with VGG16 and heads, or one of each."""
    convnext: bool = False
    """Squared distance of the features pooled by a ConvNeXt-V2. Meta's weights are for non-commercial use only."""
    convnext_factor: PositiveFloat = 0.1
    """Factor of the ConvNeXt term, after its adaptive weight."""
    convnext_model: str = "convnextv2_base"
    """Which network, by timm's name."""
    convnext_weights: Files = ["timm/convnextv2_base.fcmae_ft_in22k_in1k"]
    """Its weights, of timm, Meta or the transformers library."""
    max_t: Fraction = 0.8
    """Only rows whose time t is below this have perceptual terms (0.6 in the recipes of L/32 and H)."""
    crop_size: Annotated[Whole, Field(ge=32)] = 224
    """Side of the square that the random crop is resized to, in pixels."""


class DataConfig(Section):
    """Where images come from and how they are prepared."""

    kind: Literal["parquet", "imagefolder", "synthetic", "digits"] = "parquet"
    """Hugging Face Parquet, a folder of class folders, generated images, or the embedded 8x8 digits."""
    path: PathText | None = None
    """Folder of the data set. Parquet: the folder that holds data/SPLIT-*.parquet (or the files themselves)."""
    split: str = "train"
    """Which Parquet files: SPLIT-*.parquet."""
    image_column: str = "image"
    """Parquet column with the encoded image: a struct {bytes, path} or plain bytes."""
    label_column: str = "label"
    """Parquet column with the integer label."""
    image_size: Positive = 256
    """Side of the square training image, in pixels, after the ADM centre crop."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB; images of any other mode are converted."""
    num_classes: Positive = 1000
    """Labels are 0 ... num_classes - 1; num_classes itself is the null label."""
    num_images: Positive = 1024
    """Size of the synthetic set; ignored by the others."""
    horizontal_flip: bool = False
    """Mirror each image with probability one half (a function of seed, epoch and image)."""
    max_corrupt_fraction: Fraction = 0.001
    """Share of the images that may be undecodable, with others standing in for them; more of them end the run."""
    num_workers: NonNegative = 8
    """Decoding processes per rank. The order of samples does not depend on it."""
    prefetch_factor: Positive = 4
    """Micro-batches each worker prepares ahead."""
    pin_memory: bool = True
    """Page-locked batches, for asynchronous copies to a GPU."""


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
    compile: bool = False
    """Compile each transformer block with torch.compile; needs a C++ compiler on CPU, Triton on CUDA."""
    activation_checkpointing: bool = False
    """Keep only the input of each transformer block and compute the block again for its gradients: less memory."""
    static_shapes: bool = False
    """Pad the guidance pass to a constant number of rows: more work, for compilers that take changing shapes badly."""
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


class OptimizerConfig(Section):
    """Muon or Adam, and the learning rate over time."""

    name: Literal["muon", "nadamw", "adamw"] = "muon"
    """muon: Muon for matrices and Nesterov AdamW for the rest; or one of the two Adams for everything."""
    lr: NonNegativeFloat = 1e-3
    """Peak learning rate, shared by Muon and Adam."""
    schedule: Literal["constant", "warmup_constant", "warmup_cosine"] = "constant"
    """Learning rate over time; warmup_cosine reproduces the official schedule, see optim/schedule.py."""
    warmup_steps: NonNegative = 0
    """Linear warm-up from 0."""
    min_lr_factor: Fraction = 0.0
    """Floor of the cosine, as a fraction of lr."""
    momentum: Decay = 0.95
    """Muon's momentum."""
    betas: Betas = (0.9, 0.95)
    """Adam's moment decays."""
    eps: PositiveFloat = 1e-8
    """Adam's denominator and Muon's normaliser."""
    newton_schulz: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of Muon's orthogonalisation; auto is bfloat16 on CUDA and float32 elsewhere."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay on every parameter."""


class EmaConfig(Section):
    """Averages of the weights; every one of them is kept and saved."""

    half_lives_kimg: list[PositiveFloat] = [500, 1000, 2000]
    """Half-lives of the kept weight averages, in thousands of images."""
    decays: list[Decay] = []
    """Constant decays per step of further averages (0.9999 in MeanFlow)."""


class SamplingConfig(Section):
    """How images are generated, in grids during training and by eval.py."""

    num_steps: Positive = 1
    """Network evaluations per image."""
    omega: Annotated[FiniteFloat, Field(ge=1)] = 8.5
    """Guidance scale."""
    interval: Interval = (0.1, 0.7)
    """Guidance interval [t_min, t_max]."""
    ema: Annotated[str, BeforeValidator(number_name)] = "2000"
    """Which weights: a half-life in kimg, a decay, or "online" (as in checkpoint file names ema_*)."""
    batch_size: Positive = 64
    """Images per forward pass and rank."""
    final_images: NonNegative = 0
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


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    wandb: bool = False
    """Also log to Weights & Biases (metrics.jsonl is always written)."""
    project: str = "pmf"
    """Its project."""
    name: str | None = None
    """Its run name; null takes the run folder's."""


class Config(Section):
    """One run."""

    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
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
        for key, problem in cross_field_problems(self, ema_names(self.ema)):
            raise CrossFieldError(key, problem)
        return self


def ema_names(ema: EmaConfig) -> list[str]:
    """Names of the kept averages, as in the checkpoint's files: ``500`` for a half-life, ``0.9999`` for a decay."""
    return [number_name(value) for value in (*ema.half_lives_kimg, *ema.decays)]


def as_plain(config: Config) -> dict[str, Any]:
    """Nested dicts, lists and scalars: what config.yaml and state.json hold."""
    return config.model_dump(mode="json")
