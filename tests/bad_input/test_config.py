"""Configs and overrides that say what cannot be: found before anything else is done."""

from __future__ import annotations

from pmf.net.sizes import SIZES
from tests.bad_input.cases import Case, each
from tests.launch import ROOT

VALID = "data:\n  kind: digits\n"

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
        + ", ".join(f"configs/{path.name}" for path in sorted((ROOT / "configs").glob("*.yaml"))),
    ),
    "unknown key in the file": Case(
        yaml=VALID + "optimizer:\n  learning_rate: 1\n",
        message="{tmp}/run.yaml:4: unknown key optimizer.learning_rate; did you mean optimizer.name?",
    ),
    "key typo in the file": Case(
        yaml=VALID + "optimizer:\n  schedul: constant\n",
        message="{tmp}/run.yaml:4: unknown key optimizer.schedul; did you mean optimizer.schedule?",
    ),
    "typo in a choice": Case(
        yaml=VALID + "optimizer:\n  name: moun\n",
        message="{tmp}/run.yaml:4: optimizer.name is 'moun': input should be 'muon', 'nadamw' or 'adamw' "
        "(did you mean 'muon'?)",
    ),
    "no mapping": Case(
        yaml="- 1\n",
        message="{tmp}/run.yaml:1: a config is a mapping of sections: model, objective, perceptual, data, training, "
        "optimizer, ema, sampling, evaluation, tracking",
    ),
    "no override": Case(
        arguments=("seed",), message="command line: seed: an override is section.key=value, e.g. training.seed=1"
    ),
    "a word for a number": Case(
        arguments=("optimizer.lr=fast",),
        message="command line: optimizer.lr=fast: optimizer.lr takes a number, e.g. optimizer.lr=0.001",
    ),
    "half an interval": Case(
        arguments=("sampling.interval=[0.7]",),
        message="command line: sampling.interval=[0.7]: sampling.interval takes 2 numbers with commas between, "
        "e.g. sampling.interval=0.1,0.7",
    ),
    "no length": Case(
        arguments=("training.max_steps=null",),
        message="command line: training.max_steps=null: training.max_steps or training.epochs must be "
        "given, and not both",
    ),
    "two lengths": Case(
        arguments=("training.epochs=3",),
        message="command line: training.max_steps=12: training.max_steps or training.epochs must be "
        "given, and not both",
    ),
    "warm-up of a constant": Case(
        arguments=(
            "optimizer.schedule=constant",
            "optimizer.warmup_steps=5",
        ),
        message="command line: optimizer.warmup_steps=5: optimizer.warmup_steps needs "
        "optimizer.schedule: warmup_constant or warmup_cosine",
    ),
    "warm-up without a way down": Case(
        arguments=("optimizer.schedule=warmup_cosine", "optimizer.warmup_steps=6"),
        message="optimizer.warmup_steps is 6, but warmup_cosine needs more than twice that many steps "
        "and the run has 12; use at most 5, or schedule: warmup_constant",
    ),
    "no path": Case(
        yaml="training:\n  seed: 1\n",
        message="{tmp}/run.yaml:1: data.path is missing; data.kind parquet needs the folder of the data set",
    ),
    "unknown average": Case(
        arguments=("sampling.ema=77",),
        message='command line: sampling.ema=77: sampling.ema is "77"; choose one of: 0.05, 10, online',
    ),
    "unknown model": Case(
        arguments=("model.name=pmf_b_99",),
        message=f"model.name is 'pmf_b_99'; choose one of: {', '.join(SIZES)}",
    ),
    "compiled blocks with jvp": Case(
        arguments=("training.compile=true", "objective.derivative=jvp"),
        message="command line: objective.derivative=jvp: objective.derivative is jvp, which cannot pass compiled "
        "blocks; use dual or auto",
    ),
    "unknown parallel": Case(
        arguments=("training.parallel=zero",),
        message="command line: training.parallel=zero: training.parallel is 'zero': input should be "
        "'ddp', 'fsdp' or 'hsdp'",
    ),
    "shards of a size without groups": Case(
        arguments=("training.parallel=fsdp", "training.shard_size=2"),
        message="command line: training.shard_size=2: training.shard_size needs training.parallel: hsdp; it is fsdp",
    ),
    "shards with jvp": Case(
        arguments=("training.parallel=fsdp", "objective.derivative=jvp"),
        message="command line: objective.derivative=jvp: objective.derivative is jvp, which needs "
        "training.parallel: ddp; use dual or auto",
    ),
    "shards in fp16": Case(
        arguments=("training.parallel=hsdp", "training.mixed_precision=fp16"),
        message="command line: training.mixed_precision=fp16: training.mixed_precision is fp16, which "
        "needs training.parallel: ddp; use bf16 or no",
    ),
    "evaluation against nothing": Case(
        arguments=("evaluation.every_images=96", "evaluation.reference=null"),
        message="command line: evaluation.reference=null: evaluation.reference is missing; "
        "evaluation.every_images needs something to compare with",
    ),
}


@each(CASES)
def test_train(case, training_refused):
    assert training_refused(case) == case.message
