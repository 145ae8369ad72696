"""Everything that is worth knowing of a new GPU, in one go: python benchmarks/first_contact.py --out DIR --seconds 540

Stages run one after the other, each in a process of its own; see benchmarks/contact/stages.py for the list and
docs/performance.md for what is needed. The result file is rewritten after each measurement. A stage that fails, hangs
or runs out of memory is recorded, and the next one runs. The exit status is 0 if every stage did what it can do on this
device, else 1. On a CPU all sizes are small, and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the repository's root is not on the path

from benchmarks.contact.child import FAULTS
from benchmarks.contact.runner import Runner
from benchmarks.contact.setting import Setting, describe
from benchmarks.contact.stages import STAGES, Stage
from benchmarks.result_file import ResultFile, unused_path
from pmf.commands import run_command
from pmf.errors import UserError
from pmf.net.sizes import SIZES

ROOT = Path(__file__).parents[1]
NAMES = [stage.name for stage in STAGES]
DEFAULT_MODEL = {"cuda": "pmf_b_16", "cpu": "pmf_tiny_16"}
DESCRIBE = Stage(name="describe", run=describe, limit=60, worthwhile=0)
# Imported once, for all stages. None of these may touch the GPU while it is imported, nor start threads.
PRELOADED = ["benchmarks.contact.stages", "torch._dynamo", "torch._decomp.decompositions_for_jvp", "timm"]
START_METHODS = ("forkserver", "spawn")
ENVIRONMENT = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not initialise CUDA before a fork
    "PYTHONUNBUFFERED": "1",
}


def main() -> None:
    """Run the stages.

    Raises:
        UserError: the folder cannot be written to, or processes cannot be started.
    """
    arguments = parse()
    deadline = time.monotonic() + arguments.seconds
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the server of processes and for train.py
    with tempfile.TemporaryDirectory() as folder:
        scratch, logs = Path(folder), arguments.out / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {arguments.out}: cannot be made ({error.strerror}); choose another") from None
        runner, head = first_that_starts(scratch, logs, dict(arguments.fault), deadline)
        device = head["device"]
        setting = Setting(device=device, model=arguments.model or DEFAULT_MODEL[device], scratch=scratch)
        path = unused_path(arguments.out, head["date"], "first_contact", setting.model, head["hardware"])
        file = ResultFile(path, {**head, "model": setting.model, "seconds_allowed": arguments.seconds})
        print(f"{path}", flush=True)
        chosen = [stage for stage in STAGES if not arguments.only or stage.name in arguments.only]
        good = runner.run_all(chosen, setting, file)
    print(f"{path}\nas a table: python benchmarks/report.py {path}")
    if not good:
        sys.exit(1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file and the logs")
    parser.add_argument("--seconds", type=float, default=540, help="stop by then; default: 540")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="STAGE", help=f"of: {', '.join(NAMES)}")
    of_pmf = [name for name in SIZES if name.startswith("pmf_")]  # whose steps the stages take apart
    parser.add_argument("--model", choices=of_pmf, help="default: pmf_b_16 on a GPU, pmf_tiny_16 on a CPU")
    parser.add_argument("--fault", type=fault, action="append", default=[], help=argparse.SUPPRESS)  # for the tests
    return parser.parse_args()


def fault(text: str) -> tuple[str, str]:
    """STAGE=KIND, of NAMES and FAULTS."""
    stage, _, kind = text.partition("=")
    if stage not in NAMES or kind not in FAULTS:
        raise argparse.ArgumentTypeError(f"{text} is not STAGE=KIND with one of: {', '.join(FAULTS)}")
    return stage, kind


def first_that_starts(
    scratch: Path, logs: Path, faults: dict[str, str], deadline: float
) -> tuple[Runner, dict[str, Any]]:
    """A way to start processes in which the device can be used, and what they say of the device.

    Forked from a server that has done the imports, a stage starts at once; where that gets in CUDA's way, anew.

    Raises:
        UserError: neither way works.
    """
    for method in START_METHODS:
        context: BaseContext = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        runner = Runner(context=context, logs=logs, faults=faults, deadline=deadline)
        entry: dict[str, Any] = {"status": "running"}
        runner.run(DESCRIBE, Setting(device="cpu", model="", scratch=scratch), entry, ResultFile(None, {}))
        if entry["status"] == "ok":
            return runner, {**entry["results"], "start_method": method}
    raise UserError(f"no process can use the device: {entry['error']}; see {logs / 'describe.log'}")


if __name__ == "__main__":
    run_command(main)
