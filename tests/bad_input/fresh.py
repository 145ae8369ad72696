"""Runs commands in one process that has imported nothing yet: python fresh.py < CASES, a JSON list.

For each case it prints, as JSON: the exit status, what went to stderr, and which heavy libraries are imported by now.
"""

import contextlib
import io
import json
import os
import runpy
import sys

HEAVY = {"torch", "numpy", "accelerate", "safetensors", "pandas", "pyarrow", "sklearn", "scipy", "PIL", "timm"}
HEAVY |= {"einops", "tqdm", "matplotlib", "datasets", "wandb", "torch_fidelity", "torchvision", "diffusers"}


def run(command: list[str]) -> int:
    """The exit status of ``python COMMAND``."""
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as left:
        return left.code or 0
    return 0


def main() -> None:
    """Everything that pytest's process has imported is absent here."""
    results = []
    for case in json.load(sys.stdin):
        printed = io.StringIO()
        os.environ.update(case["environment"])
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()) as output:
            status = run(case["command"])
        for name in case["environment"]:
            del os.environ[name]
        heavy = sorted(HEAVY & sys.modules.keys())
        results.append({"status": status, "err": printed.getvalue(), "out": output.getvalue(), "heavy": heavy})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
