"""Print what makes a shell complete the commands of pmf: their names and flags, recipes, keys of the config and values.

bash   echo 'eval "$(pmf completion bash)"' >> ~/.bashrc
zsh    echo 'eval "$(pmf completion zsh)"' >> ~/.zshrc
fish   pmf completion fish > ~/.config/fish/completions/pmf.fish
"""

from __future__ import annotations

import argparse

from pmf.commands import CommandParser, program, say

SHELLS = ("bash", "zsh", "fish")


def main() -> None:
    """Parse and print."""
    parser = CommandParser(
        prog=program("pmf completion"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS)
    arguments = parser.parse_args()

    from argcomplete import shellcode

    say(shellcode(["pmf"], shell=arguments.shell))
