"""Images of a run while it trains: grids along the way, a folder of PNGs at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pmf.config.sections import Config
from pmf.distributed.shards import complete
from pmf.distributed.world import World
from pmf.errors import AgreedError, NotFiniteError, Preempted, UserError
from pmf.generation.folder import write_image_folder
from pmf.generation.images import ImageMaker, inference_network
from pmf.generation.pictures import save_png
from pmf.generation.plan import SamplingPlan, plan_samples
from pmf.tensors import tensors_sha256
from pmf.training.preemption import StopRequest
from pmf.training.run_folder import RunFolder
from pmf.training.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """Samples with the weights that the config's sampling section names; every method is called by all ranks."""

    config: Config
    state: TrainingState
    world: World
    run_folder: RunFolder
    say: Callable[[str], None]
    stop: StopRequest

    def save_grid(self, name: str) -> Path | None:
        """Ten classes, ten images each, always of the same noise, into ``samples/NAME``; the main rank draws.

        Returns:
            The file. None if weights or images are not finite, which is told; the run goes on without the grid.
        """
        path = self.run_folder.path / "samples" / name
        try:
            self._draw_grid(path)
        except NotFiniteError as error:
            self.say(f"warning: samples/{name} is left out: {error}")
            return None
        return path

    def _draw_grid(self, path: Path) -> None:
        weights = self.weights(everywhere=False)
        problem: tuple[type[UserError], str] | None = None
        if self.world.is_main:
            try:
                grid = self.maker(weights).grid(self.plan(0, weights))
                save_png(grid, path)
                self.say(f"samples: {path}")
            except UserError as error:
                problem = NotFiniteError if isinstance(error, NotFiniteError) else AgreedError, str(error)
        problem = self.world.gather(problem)[0]  # the others wait here, where no watchdog counts
        if problem:
            kind, text = problem
            raise kind(text)

    def write_final(self) -> Path | None:
        """What ``sampling.final_images`` and ``training.sample_every`` ask for when training ends.

        Returns:
            The grid, if there is one.

        Raises:
            Preempted: asked to stop on the way; the folder is completed by the next start.
            NotFiniteError: the trained weights make no images.
        """
        number = self.config.sampling.final_images
        if not (self.config.training.sample_every or number):
            return None
        grid = self.run_folder.path / "samples" / "final.png"
        self._draw_grid(grid)
        if number:
            folder = self.run_folder.path / "samples" / f"final_step_{self.state.progress.step:08d}"
            weights = self.weights(everywhere=True)
            for _ in write_image_folder(self.maker(weights), self.plan(number, weights), folder, self.world):
                if self.stop.agreed():
                    raise Preempted(f"stopped while writing {folder}; start again to complete it")
            self.say(f"{number} samples: {folder}")
        return grid

    def weights(self, *, everywhere: bool) -> dict[str, Tensor]:
        """The weights that the sampling section names; see :meth:`WeightAverages.state`."""
        which = self.config.sampling.ema
        if which == "online":
            return complete(self.state.network.state_dict(), everywhere=everywhere)
        return self.state.averages.state(which, everywhere=everywhere)

    def maker(self, weights: dict[str, Tensor]) -> ImageMaker:
        """Makes images with these weights, on this rank's device.

        Raises:
            NotFiniteError: naming a tensor.
        """
        where = f"step {self.state.progress.step}, {self.config.sampling.ema}"
        network = inference_network(self.config, weights, self.world.device, where)
        return ImageMaker(network, self.config, self.world.device)

    def plan(self, num_images: int, weights: dict[str, Tensor]) -> SamplingPlan:
        """Images of the training's seed, with the settings of the sampling section."""
        source = f"step {self.state.progress.step}, {self.config.sampling.ema}, {tensors_sha256(weights)[:16]}"
        return plan_samples(self.config, num_images=num_images, seed=self.config.training.seed, weights=source)
