"""What bash offers after the Tab key, by the script that ``pmf completion bash`` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from pmf.cli.completion import SHELLS
from pmf.cli.entry import COMMANDS
from pmf.config.listing import option_sentences
from pmf.config.shipped import shipped_names
from tests.launch import ROOT

# Bash's own variables for a line with the cursor at its end, one line after the other.
ASK = """
eval "$(pmf completion bash)"
while read -r line; do
  line="${line%|}"
  COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
  _python_argcomplete pmf "" ""
  echo "${COMPREPLY[*]}"
done
"""

KEYS = [f"{key}=" for key in option_sentences()]
LINES = {
    "pmf ": ["-h", "--help", "--version", *COMMANDS],
    "pmf do": ["doctor "],
    "pmf train --config digits": [*(name for name in shipped_names() if name.startswith("digits"))],
    "pmf train --config digits ema.": [key for key in KEYS if key.startswith("ema.")],
    "pmf train training.seed=1 --config digits optimizer.name=": ["muon", "nadamw", "adamw"],
    "pmf sample --noise ": ["ours", "official"],
    "pmf convert im": ["import "],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_recipes_keys_and_values(tmp_path):
    command = tmp_path / "pmf"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pmf "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ASK],
        input="".join(f"{line}|\n" for line in LINES),  # the mark keeps the last space
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    offered = done.stdout.splitlines()
    wanted = [" ".join(words) for words in LINES.values()]
    assert offered == wanted, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_each_shell_is_about_pmf(shell, capsys, monkeypatch):
    from pmf.cli.completion import main

    monkeypatch.setattr("sys.argv", ["pmf completion", shell])
    main()
    printed = capsys.readouterr().out
    assert {"bash": " pmf\n", "zsh": "#compdef pmf", "fish": "--command pmf"}[shell] in printed
