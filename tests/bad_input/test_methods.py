"""What one method has no use for, or cannot train: told with the method's name."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

import eval as eval_command
from pmf.config.yaml_file import load_config
from pmf.training.trainer import Trainer
from tests.bad_input.cases import Case, each
from tests.launch import NETWORKS, TINY

DIGITS = "data: {kind: digits, image_size: 8, channels: 1, num_classes: 10, num_workers: 0}\n"
MEAN_FLOW = (
    f"{DIGITS}model: {{name: dit_tiny_2}}\nobjective: {{name: meanflow}}\n"
    "sampling: {omega: 1.0, interval: [0.0, 1.0], ema: 10}\n"
)
IMPROVED = f"{DIGITS}model: {{name: imf_tiny_2}}\nobjective: {{name: imf}}\nsampling: {{ema: 10}}\n"

CASES = {
    "a guidance scale for sampling": Case(
        yaml=MEAN_FLOW,
        arguments=("sampling.omega=8.5",),
        message="command line: sampling.omega=8.5: sampling.omega is 8.5, but objective.name meanflow trains its "
        "guidance in (objective.guidance_scale); set it to 1.0",
    ),
    "a guidance interval for sampling": Case(
        yaml=MEAN_FLOW,
        arguments=("sampling.interval=[0.1, 0.7]",),
        message="command line: sampling.interval=[0.1, 0.7]: sampling.interval is [0.1, 0.7], but objective.name "
        "meanflow trains its guidance in (objective.guidance_interval); set it to [0.0, 1.0]",
    ),
    "the defaults for sampling": Case(
        yaml=f"{DIGITS}model: {{name: dit_tiny_2}}\nobjective: {{name: meanflow}}\n",
        message="{tmp}/run.yaml:1: sampling.omega is 8.5, but objective.name meanflow trains its guidance in "
        "(objective.guidance_scale); set it to 1.0",
    ),
    "all of the conditional velocity": Case(
        yaml=MEAN_FLOW,
        arguments=("objective.guidance_mixing=1.0",),
        message="command line: objective.guidance_mixing=1.0: objective.guidance_mixing is 1.0: input should be less "
        "than 1",
    ),
    "no guidance scale": Case(
        yaml=MEAN_FLOW,
        arguments=("objective.guidance_scale=0",),
        message="command line: objective.guidance_scale=0: objective.guidance_scale is 0: input should be greater "
        "than 0",
    ),
    "guidance interval upside down": Case(
        yaml=MEAN_FLOW,
        arguments=("objective.guidance_interval=[0.6, 0.1]",),
        message="command line: objective.guidance_interval=[0.6, 0.1]: objective.guidance_interval is [0.6, 0.1]; it "
        "must be [t_start, t_end] with t_start < t_end",
    ),
    "guidance interval beyond noise": Case(
        yaml=MEAN_FLOW,
        arguments=("objective.guidance_interval=[0.1, 1.2]",),
        message="command line: objective.guidance_interval=[0.1, 1.2]: objective.guidance_interval.1 is 1.2: input "
        "should be less than or equal to 1",
    ),
    "an option of other methods": Case(
        yaml=MEAN_FLOW,
        arguments=("objective.guidance_max=3",),
        message="command line: objective.guidance_max=3: unknown key objective.guidance_max; it is of objective.name "
        "imf and pmf",
    ),
    "an option of another method": Case(
        yaml=IMPROVED,
        arguments=("objective.noise_scale=2",),
        message="command line: objective.noise_scale=2: unknown key objective.noise_scale; it is of objective.name pmf",
    ),
    "no such method": Case(
        yaml=IMPROVED,
        arguments=("objective.name=meanflows",),
        message="command line: objective.name=meanflows: objective.name is 'meanflows': input should be 'meanflow', "
        "'imf' or 'pmf' (did you mean 'meanflow'?)",
    ),
    "perceptual losses": Case(
        yaml=IMPROVED,
        arguments=("perceptual.lpips=true",),
        message="command line: perceptual.lpips=true: perceptual.lpips is true, but objective.name imf has no "
        "perceptual terms; set it to false",
    ),
    "a v head too many": Case(
        yaml=MEAN_FLOW,
        arguments=("model.name=imf_tiny_2",),
        message="objective.name is meanflow, which trains a u head alone; the v head of ImfTransformer would never be "
        "trained",
    ),
    "a v head too few": Case(
        yaml=IMPROVED,
        arguments=("model.name=dit_tiny_2",),
        message="objective.name is imf, which trains a u and a v head; DiffusionTransformer has no v head",
    ),
    "compiled blocks with jvp": Case(
        yaml=MEAN_FLOW,
        arguments=("training.compile=true", "objective.derivative=jvp"),
        message="command line: objective.derivative=jvp: objective.derivative is jvp, which cannot pass compiled "
        "blocks; use dual or auto",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    assert training_refused(case) == case.message


@pytest.fixture(scope="session")
def finished_mean_flow(once):
    """A run folder of MeanFlow with one checkpoint."""

    def train(folder):
        config = folder.with_suffix(".yaml")
        config.write_text(MEAN_FLOW)
        network = f"model.name={NETWORKS['digits_meanflow']}"
        Trainer(load_config(config, [*TINY, network, "training.max_steps=1", f"training.output_dir={folder}"])).train()
        AcceleratorState._reset_state(reset_partial_state=True)

    return once("finished run of MeanFlow", train)


SAMPLING = {
    "a guidance scale": Case(
        arguments=("--omega", "3"),
        message="command line: sampling.omega is 3.0, but objective.name meanflow trains its guidance in "
        "(objective.guidance_scale); set it to 1.0",
    ),
    "a guidance interval": Case(
        arguments=("--interval", "0.1", "0.7"),
        message="command line: sampling.interval is [0.1, 0.7], but objective.name meanflow trains its guidance in "
        "(objective.guidance_interval); set it to [0.0, 1.0]",
    ),
}


@pytest.mark.parametrize("verb", ["sample", "fid", "sweep"])
@each(SAMPLING)
def test_eval(case, verb, refused, finished_mean_flow, tmp_path):
    arguments = [verb, "--checkpoint", str(finished_mean_flow), "--num-images", "10", *case.arguments]
    if verb != "sample":
        arguments += ["--reference", "digits"]
    if verb != "fid":
        arguments += ["--output", str(tmp_path / "out")]
    assert refused(eval_command.main, case, *arguments) == case.message
    assert not (tmp_path / "out").exists()
