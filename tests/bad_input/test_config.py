"""Configs and overrides that say what cannot be: found before anything else is done."""

from __future__ import annotations

from tests.bad_input.cases import Case, each

CASES = {
    "key typo": Case(
        arguments=("optimizer.schedul=constant",),
        message="command line: optimizer.schedul=constant: unknown key optimizer.schedul; "
        "did you mean optimizer.schedule?",
    ),
    "a number as a string": Case(
        yaml="training:\n  seed: '10'\ndata:\n  kind: digits\n",
        message="{tmp}/run.yaml:2: training.seed is '10': input should be a valid integer",
    ),
    "duplicate key": Case(
        yaml="optimizer:\n  lr: 1e-3\n  lr: 2e-3\n",
        message="{tmp}/run.yaml:3: optimizer.lr stands here a second time (first at {tmp}/run.yaml:2); remove one",
    ),
    "invalid YAML": Case(
        yaml="training:\n  max_steps: [1\nx\n",
        message="{tmp}/run.yaml:4:1: invalid YAML: expected ',' or ']', but got '<stream end>'",
    ),
    "unset variable": Case(
        yaml="data:\n  path: ${PMF_SURELY_UNSET}/train\n",
        message="{tmp}/run.yaml:2: data.path uses ${PMF_SURELY_UNSET}, which is not set; export it or write the value",
    ),
    "code in YAML": Case(
        yaml="data: !!python/object/apply:os.system ['touch {tmp}/hacked']\n",
        message="{tmp}/run.yaml:1: data has the tag tag:yaml.org,2002:python/object/apply:os.system; configs "
        "hold plain values only",
    ),
    "values that multiply": Case(
        yaml="a: &a [x, x]\nb: &b [*a, *a]\n",
        message="{tmp}/run.yaml:2:8: invalid YAML: configs have no aliases (*a); write the value out",
    ),
    "endless nesting": Case(
        yaml="data: " + "[" * 500,
        message="{tmp}/run.yaml: invalid YAML: nested too deeply; a config has sections and keys",
    ),
    "batch not divisible": Case(
        arguments=("training.micro_batch_size=5",),
        message="command line: training.micro_batch_size=5: training.micro_batch_size is 5, which does not "
        "divide training.global_batch_size 16; nearest divisors: 4, 8",
    ),
    "half-life 0": Case(
        arguments=("ema.half_lives_kimg=[0]",),
        message="command line: ema.half_lives_kimg=[0]: ema.half_lives_kimg.0 is 0: input should be greater than 0",
    ),
    "negative learning rate": Case(
        arguments=("optimizer.lr=-1e-3",),
        message="command line: optimizer.lr=-1e-3: optimizer.lr is -0.001: input should be greater than or equal to 0",
    ),
    "learning rate not a number": Case(
        arguments=("optimizer.lr=.nan",),
        message="command line: optimizer.lr=.nan: optimizer.lr is nan: input should be a finite number",
    ),
    "warm-up longer than the run": Case(
        arguments=("optimizer.schedule=warmup_constant", "optimizer.warmup_steps=13"),
        message="command line: optimizer.warmup_steps=13: optimizer.warmup_steps is 13, more than "
        "training.max_steps 12; lower it",
    ),
    "interval upside down": Case(
        arguments=("sampling.interval=[0.7, 0.1]",),
        message="command line: sampling.interval=[0.7, 0.1]: sampling.interval is [0.7, 0.1]; it must be [t_min, "
        "t_max] with t_min < t_max",
    ),
    "no such config": Case(
        yaml="",
        prepare=lambda folder: (folder / "run.yaml").unlink(),
        message="{tmp}/run.yaml: cannot read this config (No such file or directory); known configs: "
        "configs/digits.yaml, configs/pmf_b_16.yaml, configs/pmf_b_32.yaml, configs/pmf_h_16.yaml, "
        "configs/pmf_h_32.yaml, configs/pmf_l_16.yaml, configs/pmf_l_32.yaml",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    assert training_refused(case) == case.message
