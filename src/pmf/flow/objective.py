"""What an objective is, and the table of them. Needs no torch, so that configs are checked against it.

To add a method: a file with its options (a subclass of :class:`ObjectiveOptions`) and its :class:`Objective`, and a row
of ``OBJECTIVES``. Nothing else in the library knows the names of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails

from pmf.errors import UserError
from pmf.options import Section
from pmf.tables import Row, names_in, one_of, resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pmf.distributed.world import World
    from pmf.net.interface import Network

Scalars = TypeVar("Scalars")
Draws = TypeVar("Draws")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        options: its subclass of :class:`ObjectiveOptions`.
        objective: its subclass of :class:`Objective`; made as in :func:`create_objective`.
    """

    options: Row
    objective: Row


DEFAULT = "pmf"
"""The method of a config that names none."""

OBJECTIVES: dict[str, Method] = {
    "meanflow": Method("pmf.flow.options:MeanFlowOptions", "pmf.flow.mean_flow:MeanFlow"),
    "imf": Method("pmf.flow.options:ImprovedMeanFlowOptions", "pmf.flow.improved_mean_flow:ImprovedMeanFlow"),
    "pmf": Method("pmf.flow.options:PixelMeanFlowOptions", "pmf.flow.pixel_mean_flow:PixelMeanFlow"),
}


class ObjectiveOptions(Section):
    """The objective section of a config; which options there are, its ``name`` decides."""

    takes_perceptual: ClassVar[bool] = False
    """Whether the method has terms for the distances of the perceptual section."""
    fixed_sampling: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Options of the sampling section that can have one value only, by name: the value, and what the method does that
    the option would otherwise decide."""
    name: Annotated[str, one_of(OBJECTIVES)]
    """The method."""

    @classmethod
    def alternatives(cls) -> list[type[Section]]:
        """The sections of all methods in the table."""
        return [resolve(row.options) for row in OBJECTIVES.values()]

    def problems(self, *, compiled: bool, parallel: str) -> list[tuple[str, str]]:  # noqa: ARG002  # for subclasses
        """What does not go with ``training.compile`` and ``training.parallel``: the option, and what is wrong."""
        return []

    def countable(self) -> Self:
        """Options for the same step on tensors without contents, where something stands in for what these cannot do."""
        return self


class PerceptualDistances(Protocol):
    """Distances between denoised images and the true ones, by name.

    Attributes:
        factors: what each distance, after its adaptive weight, is multiplied with in the loss.
    """

    factors: Mapping[str, float]

    def __call__(self, prediction: Tensor, image: Tensor, uniform_crop: Tensor) -> Mapping[str, Tensor]:
        """Two batches (P, C, H, W) in [-1, 1] and (P, 4) uniforms of a crop to (P,) by name; gradients to the first."""


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a step minimises and what is worth watching.

    Attributes:
        total: scalar with graph.
        logs: detached scalars for ``metrics.jsonl``; ``loss`` is among them.
        parts: terms of each row, (B,), for tests and analysis.
    """

    total: Tensor
    logs: dict[str, Tensor]
    parts: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(Generic[Draws]):
    """What the loss of a micro-batch is a function of, beside the weights.

    Attributes:
        images: (B, C, H, W) float32 in the network's space.
        labels: (B,) int64.
    """

    images: Tensor
    labels: Tensor
    draws: Draws


class Objective(Generic[Scalars, Draws]):
    """Draws, then a loss that is a deterministic function of network, images, labels and draws.

    Random numbers come from the generators alone, which are functions of (seed, step, micro-batch).

    Attributes:
        noise_scale: standard deviation of the noise that :meth:`generate` starts from.
        shown: which of the logs the progress bar shows.
        compiled_methods: names of methods that compute with tensors alone and call no network, for
            :meth:`compile_losses`.
    """

    noise_scale: float = 1.0
    shown: str = "loss"
    compiled_methods: tuple[str, ...] = ()

    def require_network(self, network: Network, *, compiled: bool, parallel: str) -> None:
        """Whether the network can be trained with this objective.

        Args:
            compiled, parallel: ``training.compile`` and ``training.parallel``.

        Raises:
            UserError: it cannot, or not so.
        """

    def compile_losses(self) -> None:
        """Compile what the loss does beside the network: each of ``compiled_methods`` by itself."""
        from pmf.net.base import compiled

        for name in self.compiled_methods:
            setattr(self, name, compiled(getattr(self, name)))

    def require_recordable(self, network: Network) -> None:  # noqa: ARG002  # for subclasses
        """Whether :meth:`loss` can be recorded as a CUDA graph: a function of tensors alone, on the device alone.

        It makes no decision by their contents, copies nothing from the host, draws nothing and changes nothing on the
        host, and there is no :meth:`begin_step`.

        Raises:
            UserError: it cannot, as is assumed unless a subclass overrides this.
        """
        raise UserError(
            f"training.cuda_graph is on, but the loss {type(self).__name__} does not say that it can be recorded; "
            "set it to false"
        )

    def draw_rows(
        self, rows: int, num_micro_batches: int, wanted: Sequence[int], generator: torch.Generator
    ) -> list[Scalars]:
        """Draw the scalars of a global batch, and deal its rows to micro-batches that all have equally much to do.

        Args:
            rows: of the global batch.
            wanted: the micro-batches to return.
            generator: on the CPU; a function of (seed, step).

        Returns:
            For each micro-batch that is wanted, in that order, the scalars of rows / num_micro_batches rows.
        """
        raise NotImplementedError

    def draw(self, images: Tensor, generator: torch.Generator, scalars: Scalars | None = None) -> Draws:
        """Draw what is left of one micro-batch: the noise above all.

        Noise comes from :func:`pmf.randomness.normal_like`: costs are counted on many thousands of rows of images
        without contents (on torch's meta device). What decides how many rows a pass has is drawn and compared
        on the CPU.

        Args:
            images: (B, C, H, W) in the network's space; shape, dtype and device count.
            generator: on the CPU; a function of (seed, step, micro-batch).
            scalars: those of the micro-batch; None draws them too.
        """
        raise NotImplementedError

    def begin_step(
        self, network: nn.Module, micro_batches: Sequence[Callable[[], MicroBatch[Draws]]], world: World
    ) -> None:
        """Called once a step, on every rank, before the losses of its micro-batches.

        Where the loss is one function of the whole global batch, this is the place to run the network over each
        micro-batch without a graph, to gather over ranks what the loss is made of, and to keep what :meth:`loss` needs
        to run each of them again with a graph. Messages between ranks must be the same on all of them. Costs are
        counted with a world of one.

        Args:
            micro_batches: of this rank; each is made anew at every call, with the same numbers.
        """

    def loss(self, network: Network, images: Tensor, labels: Tensor, draws: Draws) -> LossTerms:
        """The loss of one micro-batch.

        Args:
            images: (B, C, H, W) in the network's space.
            labels: (B,) int64 in [0, num_classes).

        Returns:
            ``total`` is a mean over the rows; the names of ``logs`` are the same on every rank and in every step.
        """
        raise NotImplementedError

    def generate(self, network: Network, noise: Tensor, labels: Tensor, **sampling: Any) -> Tensor:
        """Noise to images: (B, C, H, W), in the network's space up to overshoot.

        A function of the weights and these arguments: the :meth:`state` is not there when images are made.

        Args:
            noise: (B, C, H, W), normal with standard deviation ``noise_scale``.
            labels: (B,) int64.
            **sampling: the options of the sampling section that images depend on, as it declares them: ``omega``,
                ``interval``, ``num_steps``, ``sampler`` and others that were added; all but how the noise was drawn.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What changes from step to step, by name, to be saved with a checkpoint; equal on all ranks."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved :meth:`state`: copy the tensors, which are on the CPU."""


def create_objective(
    options: ObjectiveOptions,
    *,
    num_classes: int,
    perceptual: PerceptualDistances | None = None,
    perceptual_max_t: float = 1.0,
    static_shapes: bool = False,
    few_sizes: bool = False,
) -> Objective[Any, Any]:
    """The objective of a config's section. All that is given here is passed on to it, by keyword.

    Args:
        perceptual: distances of the denoised image from the true one, for methods that use them.
        perceptual_max_t: only rows with t below it are under them.
        static_shapes: give every pass of the network a constant number of rows.
        few_sizes: round varying numbers of rows up to a few sizes, as compiled code wants it.
    """
    made: Objective[Any, Any] = resolve(OBJECTIVES[options.name].objective)(
        options,
        num_classes=num_classes,
        perceptual=perceptual,
        perceptual_max_t=perceptual_max_t,
        static_shapes=static_shapes,
        few_sizes=few_sizes,
    )
    return made


def read_options(values: Any, info: ValidationInfo) -> ObjectiveOptions:
    """The objective section of a config: its ``name`` says which options there are.

    Raises:
        ValidationError: the name is not in the table, or see the method's options.
    """
    if isinstance(values, ObjectiveOptions) or not isinstance(values, dict):
        return values
    name = values.get("name", DEFAULT)
    if not isinstance(name, str) or name not in OBJECTIVES:
        context = {"expected": names_in(OBJECTIVES)}
        details = InitErrorDetails(type="literal_error", loc=("name",), input=name, ctx=context)
        raise ValidationError.from_exception_data("objective", [details])
    chosen: type[ObjectiveOptions] = resolve(OBJECTIVES[name].options)
    return chosen.model_validate({"name": name, **values}, context=info.context)


def default_options() -> ObjectiveOptions:
    """The options of a config without an objective section."""
    options: ObjectiveOptions = resolve(OBJECTIVES[DEFAULT].options)()
    return options
