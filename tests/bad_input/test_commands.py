"""What every command tells before torch is imported: wrong arguments, configs, files, and launchers' variables."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from pmf.commands import run_command
from pmf.distributed.launcher import require_launcher
from pmf.errors import UserError
from tests.launch import ROOT, launch

DIGITS = str(ROOT / "configs" / "digits.yaml")
IMAGES = str(ROOT / "tests")  # a folder that is there
EVAL = str(ROOT / "eval.py")
TRAIN = (str(ROOT / "train.py"), "--config", DIGITS)
TUNE = (str(ROOT / "auto_batch.py"), "--config", DIGITS)
DOCTOR = ("-m", "pmf.doctor", DIGITS)
SAMPLE = (EVAL, "sample", "--checkpoint", IMAGES, "--output", "x", "--num-images", "1")
FID = (EVAL, "fid", "--images", IMAGES, "--reference", "digits")
SWEEP = (EVAL, "sweep", "--checkpoint", IMAGES, "--reference", "digits", "--output", "x", "--omega", "2")
REFERENCE = (EVAL, "reference", "--output", "x.npz")
IMPORT = ("-m", "pmf.convert", "import", "--checkpoint", IMAGES, "--config", DIGITS, "--output", "x.safetensors")
EXPORT = ("-m", "pmf.convert", "export", "--checkpoint", IMAGES, "--output", "x.pt")
MEMORY = ("-m", "benchmarks.scaling", DIGITS)
ENCODE = ("-m", "pmf.data.encode", "--data-path", IMAGES, "--output", "x")
PMF = ("-m", "pmf")
PMF_TRAIN = (*PMF, "train", "--config", "digits")
PMF_FID = (*PMF, *FID[1:])
PMF_REFERENCE = (*PMF, "reference", "--output", "x.npz", "--config", "digits")
COMMANDS = (
    PMF_TRAIN,
    PMF_FID,
    PMF_REFERENCE,
    TRAIN,
    TUNE,
    DOCTOR,
    SAMPLE,
    FID,
    SWEEP,
    (*REFERENCE, "--config", DIGITS),
    IMPORT,
    EXPORT,
    MEMORY,
    ENCODE,
)


COMPLETE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}


@dataclass(frozen=True)
class Case:
    """A command line, and a part of the one line that it must print."""

    command: tuple[str, ...]
    message: str
    environment: dict[str, str] = field(default_factory=dict)


# Every command that reads a config, with each kind of mistake that a config can have.
CONFIG_MISTAKES = {
    "optimizer.schedul=constant": "unknown key optimizer.schedul; did you mean optimizer.schedule?",
    "optimizer.schedule=cosine": "optimizer.schedule is 'cosine': input should be",
    "optimizer.lr=fast": "optimizer.lr takes a number, e.g. optimizer.lr=0.001",
    "training.micro_batch_size=5": "which does not divide training.global_batch_size",
    "optimizer.warmup_steps=3": "optimizer.warmup_steps",
    "data.num_classes=11": "data.kind digits needs data.num_classes: 10",
    "seed": "an override is section.key=value",
}
WITH_OVERRIDES = (PMF_TRAIN, PMF_REFERENCE, TRAIN, DOCTOR, (*REFERENCE, "--config", DIGITS))
CASES = [
    *(Case((*command, mistake), text) for command in WITH_OVERRIDES for mistake, text in CONFIG_MISTAKES.items()),
    Case((*TUNE, "optimizer.schedul=constant"), "did you mean optimizer.schedule?"),
    Case((*TUNE, "training.micro_batch_size=4"), "is what this command finds"),
    Case((*TUNE, "--device-memory", "forty"), "forty is not a size"),
    Case((*PMF, "trian"), "pmf trian: there is no such command; did you mean train?"),
    Case((*PMF, "train", "--config", "digts"), "did you mean digits"),
    # A model, and an image size, that the table has not.
    *(Case((*command, "model.name=pmf_b_17"), "choose one of: pmf_b_16") for command in (TRAIN, TUNE)),
    *(Case((*command, "data.image_size=9"), "use 8 or 10") for command in (TRAIN, TUNE)),
    # Configs, checkpoints, folders and references that are not there.
    *(
        Case((*command[:-1], "nosuch.yaml"), "nosuch.yaml: cannot read this config")
        for command in (TRAIN, TUNE, MEMORY, (*SAMPLE, "--config", ""), (*REFERENCE, "--config", ""))
    ),
    Case((*IMPORT, "--config", "nosuch.yaml"), "nosuch.yaml: cannot read this config"),
    *(
        Case((*command, "--checkpoint", "nosuch"), "--checkpoint nosuch: there is no such file or folder")
        for command in (SAMPLE, SWEEP, IMPORT, EXPORT)
    ),
    Case((*FID, "--images", "nosuch"), "--images nosuch: there is no such file or folder"),
    *(Case((*command, "--reference", "nosuch"), "nosuch: is neither digits") for command in (FID, SWEEP)),
    Case((*FID, "--reference", "nosuch.yaml"), "nosuch.yaml: cannot read this config"),
    Case((*FID, "--extractor", "nosuch.pt"), "--extractor nosuch.pt: there is no such file"),
    Case((*FID, "--extractor-weights", "nosuch"), "--extractor-weights nosuch: there is no such file"),
    Case((*REFERENCE, "--data", "nosuch"), "--data nosuch: there is no such file or folder"),
    Case((*TRAIN, "data.kind=parquet", "data.path=nosuch"), "nosuch: data.path does not exist"),
    Case((*TRAIN, "data.kind=imagefolder", "data.path=nosuch"), "nosuch: data.path does not exist"),
    Case((*TRAIN, "evaluation.reference=nosuch"), "nosuch: is neither digits"),
    Case((*TRAIN, "optimizer.schedule=warmup_cosine", "optimizer.warmup_steps=800"), "optimizer.warmup_steps"),
    Case((*TRAIN, "training.global_batch_size=50"), "not a multiple of the 4 processes", COMPLETE),
    Case((*TRAIN, "--resume", "nosuch"), "--resume nosuch: there is no such folder"),
    # Arguments that are missing, unknown, or have values that cannot be.
    *(Case(command[:2] if command[0] != "-m" else command[:3], "required") for command in (SAMPLE, FID, IMPORT)),
    Case((str(ROOT / "train.py"),), "--config"),
    *(Case((*command, "--nosuch"), "unrecognized arguments: --nosuch") for command in COMMANDS),
    *(Case((*SAMPLE, "--num-images", value), f"{value} is not a whole number from 1") for value in ("0", "1.5", "x")),
    Case((*SAMPLE, "--seed", "-1"), "-1 is not a whole number from 0"),
    Case((*SAMPLE, "--labels", "1,x"), "give classes separated by commas, all or blocks"),
    *(Case((*command, "--omega", "0.5"), "sampling.omega is 0.5") for command in (SAMPLE, FID, SWEEP)),
    *(Case((*command, "--interval", "0.7", "0.1"), "sampling.interval is") for command in (SAMPLE, FID, SWEEP)),
    *(Case((*command, "--num-steps", "0"), "sampling.num_steps is 0") for command in (SAMPLE, FID, SWEEP)),
    *(Case((*command, "--batch-size", "0"), "sampling.batch_size is 0") for command in (SAMPLE, FID, SWEEP)),
    Case((*FID, "--keep-images", "x"), "it goes with --checkpoint"),
    Case((*REFERENCE, "--data", "digits", "data.split=test"), "data.split=test: overrides are for --config"),
    Case((*MEMORY, "--processes", "7"), "--processes 7 does not divide"),
    Case((*EXPORT, "--output", "x.safetensors"), "give a file name that ends in .pt"),
    # A path with a variable that is not set, in each option that is one.
    *(
        Case((*command, option, "$PMF_UNSET/x"), "uses $PMF_UNSET, which is not set")
        for command, options in (
            (TRAIN, ("--config", "--resume")),
            (TUNE, ("--config",)),
            (SAMPLE, ("--checkpoint", "--output", "--config")),
            (FID, ("--images", "--output", "--keep-images", "--reference", "--extractor", "--extractor-weights")),
            (SWEEP, ("--checkpoint", "--output", "--config", "--reference")),
            (REFERENCE, ("--data", "--output", "--config")),
            (IMPORT, ("--checkpoint", "--output", "--config")),
            (EXPORT, ("--checkpoint", "--output")),
        )
        for option in options
    ),
    Case((*DOCTOR[:-1], "~nobody_here/x.yaml"), "begins with ~nobody_here, whose home folder is not known"),
    Case((*MEMORY, "${PMF_UNSET}/x"), "uses ${PMF_UNSET}, which is not set"),
    # Some launcher's variables and not the others: for every command, and though RANK is not 0.
    Case((*ENCODE, "--image-size", "250"), "--image-size 250: give a multiple of 8"),
    Case((*ENCODE, "--data-path", "/nowhere"), "/nowhere: data.path does not exist"),
    *(Case(command, "has RANK=1, but not LOCAL_RANK, WORLD_SIZE", {"RANK": "1"}) for command in COMMANDS),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict[str, object]]:
    """What a process that has imported nothing does with each case, and at the end with ``--help`` and such."""
    asked = [{"command": case.command, "environment": case.environment} for case in (*CASES, *QUESTIONS)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    process = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bad_input" / "fresh.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("work"),
        env=environment,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


QUESTIONS = [
    *(Case((*command, "--help"), "usage:", {"RANK": "1"}) for command in COMMANDS),
    Case((*TRAIN, "--print-config"), "training:"),
    Case((*PMF_TRAIN, "--print-config"), "training:"),
    Case((*PMF, "--help"), "auto-batch"),
    Case((*PMF, "configs"), "digits"),
]


def test_every_mistake_is_one_line_and_status_2(told):
    wrong = {}
    for case, result in zip(CASES, told):
        # The doctor's lines are verdicts on stdout.
        lines = str(result["err"] or result["out"]).splitlines()
        told_once = len(lines) == 1 and lines[0].startswith("error") and case.message in lines[0]
        if result["status"] != 2 or not told_once:
            wrong[" ".join(case.command)] = result
    assert wrong == {}


def test_no_mistake_and_no_question_needs_torch(told):
    """Nor anything else that takes long to import: numpy, pyarrow, Pillow ..."""
    assert [
        (case.command, result["heavy"]) for case, result in zip((*CASES, *QUESTIONS), told) if result["heavy"]
    ] == []


def test_help_and_the_resolved_config_are_printed(told):
    answers = told[len(CASES) :]
    assert [result["status"] for result in answers] == [0] * len(QUESTIONS)
    assert all(case.message in str(result["out"]) for case, result in zip(QUESTIONS, answers))


def test_training_imports_what_a_run_needs_and_no_more():
    """Half of the time went to libraries for a run with shards or perceptual losses, or for one kind of data."""
    code = (
        "import json, sys, torch, accelerate; before = set(sys.modules); import pmf.training.trainer;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = launch("-c", code, PYTHONPATH=str(ROOT / "src"))
    assert result.returncode == 0, result.stderr
    added = {name.split(".")[0]: name for name in json.loads(result.stdout) if not name.startswith("_")}
    wanted = {"pmf", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "yaml", "einops", "PIL"}
    wanted |= {"tqdm", "safetensors"}  # both of which Accelerate imports at present
    assert {root: name for root, name in added.items() if root not in {*wanted, *sys.stdlib_module_names}} == {}


# ----------------------------------------------------------------------------------------------- launchers' variables

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def problem(environment: dict[str, str]) -> str | None:
    try:
        require_launcher(environment)
    except UserError as error:
        return str(error)
    return None


def test_of_all_subsets_only_complete_ones_and_none_are_taken():
    for size in range(len(COMPLETE) + 1):
        for names in itertools.combinations(COMPLETE, size):
            told = problem({name: COMPLETE[name] for name in names})
            given = [name for name in NUMBERS if name in names]
            missing = [name for name in COMPLETE if name not in (*names, "LOCAL_WORLD_SIZE")]
            assert (told is not None) == bool(given and missing), names
            if told:
                there, absent = told.split("; ")[0].split(", but not ")
                assert all(f"{name}={COMPLETE[name]}" in there for name in names)
                assert absent.replace(" and ", ", ").split(", ") == missing
                assert f"env {' '.join(f'-u {name}' for name in given)} python" in told
                assert "\n" not in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: ""}, f"{name} is empty, not a whole number") for name in NUMBERS),
        *(({name: "-1"}, f"{name} is -1, not a whole number") for name in NUMBERS),
        *(({name: "1.5"}, f"{name} is 1.5, not a whole number") for name in NUMBERS),
        *(({name: "two"}, f"{name} is two, not a whole number") for name in NUMBERS),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, not a whole number from 1"),
        ({"RANK": "4"}, "RANK must be less than WORLD_SIZE"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK must be less than LOCAL_WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE must not be more than WORLD_SIZE"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is empty"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0, not a port"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is empty, not a port"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is http, not a port"),
    ],
    ids=str,
)
def test_values_that_cannot_be(changes, message):
    told = problem({**COMPLETE, **changes})
    assert told is not None
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_of_mpi_need_the_variables_of_a_group_too(name):
    told = problem({name: "2"})
    assert told is not None
    assert told.startswith(f"the environment has {name}=2, but not RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and")
    assert problem({name: "1"}) is None
    assert problem({**COMPLETE, name: "4"}) is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        COMPLETE,
        {name: value for name, value in COMPLETE.items() if name != "LOCAL_WORLD_SIZE"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "True"},  # accelerate launch --cpu
        {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "MASTER_ADDR": "host"},
        {"NODE_RANK": "1", "PET_NNODES": "2"},
    ],
    ids=["none", "torchrun", "without the machine's size", "accelerate on a CPU", "SLURM", "others"],
)
def test_sets_that_are_taken(environment):
    assert problem(environment) is None


def test_every_rank_reports_contradictions_and_none_runs(monkeypatch, capsys):
    """No process can know whether it is the main one, which alone talks otherwise."""
    for rank in ("0", "1", "", "x"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            run_command(lambda: pytest.fail("the command was run"))
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: the environment has RANK={rank}, but not LOCAL_RANK")
