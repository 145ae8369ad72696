"""Several calls of eval.py in one start of the processes: python tests/eval_worker.py '[["fid", ...], ...]'."""

import importlib
import json
import sys

from pmf.commands import run_command


def main() -> None:
    for arguments in json.loads(sys.argv.pop()):
        sys.argv[1:] = arguments
        importlib.import_module("eval").main()


if __name__ == "__main__":
    run_command(main)
