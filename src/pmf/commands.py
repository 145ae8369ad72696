"""How a command reads its arguments and how it ends. Needs no torch, so that a mistake is reported at once."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pmf.distributed.launcher import is_main_rank, require_launcher
from pmf.errors import PREEMPTED_STATUS, AgreedError, Preempted, UserError
from pmf.files import print_any_name, storage_in_one_line
from pmf.options import FLOAT, expand_path, number


def program(script: str) -> str:
    """What a command's own texts call it: ``pmf VERB`` if it was started so, or else ``script``."""
    return sys.argv[0] if sys.argv[0].startswith("pmf ") else script


class CommandParser(argparse.ArgumentParser):
    """A parser that reports a wrong command line like any other mistake: in one line, from the main process alone.

    Asked by a shell what may come next (:mod:`pmf.cli.completion`), it answers instead of parsing and ends the process.
    """

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`."""
        self.complete()
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`."""
        self.complete()
        return super().parse_intermixed_args(args, namespace)

    def complete(self) -> None:
        """Answer a shell that asks what may come next, and end; otherwise nothing."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)

    def error(self, message: str) -> NoReturn:
        """End the command.

        Raises:
            UserError: always.
        """
        raise UserError(self._misspelt() or f"{message}; {self.prog} --help shows what there is")

    def _misspelt(self) -> str | None:
        """The line about the first flag that there is not, but another much like it; argparse reports others first."""
        flags = (word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--"))
        for flag in flags:
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.8)
            if close and not any(known.startswith(flag) for known in self._option_string_actions):
                return f"there is no {flag}; did you mean {close[0]}?"
        return None


def completed_by(action: argparse.Action, completer: Callable[..., Mapping[str, str]]) -> None:
    """Have shells complete the values of an argument.

    Args:
        completer: is called with ``prefix``, the beginning of the word; returns words, each with what is said of it.
    """
    action.completer = completer  # type: ignore[attr-defined]  # where argcomplete looks


def path_text(text: str) -> str:
    """The value of an argument that may be a path; see :func:`pmf.options.expand_path`. For ``type=`` of argparse."""
    try:
        return expand_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"{text or 'the path'} {error}") from None


def to_path(text: str) -> Path:
    """The value of an argument that is a path. For ``type=`` of argparse."""
    return Path(path_text(text))


def whole_from(least: int) -> Callable[[str], int]:
    """A reader for arguments that are whole numbers, at least ``least``; 5e4 is one. For ``type=`` of argparse."""

    def read(text: str) -> int:
        try:
            value = number(text) if FLOAT.fullmatch(text) else -1
        except ValueError:  # more digits than Python reads
            value = -1
        if value < least or not (isinstance(value, int) or value.is_integer()):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least}")
        return int(value)

    return read


def say(text: str) -> None:
    """Print a line that all processes would print, from the main one alone."""
    if is_main_rank(os.environ):
        print(text)


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake becomes one line on stderr and exit status 2.

    A mistake that several ranks find is reported once. Before the process group exists all of them find it, and the
    main one talks, as for what they agreed on; after that any of them may be the only one. Where the launcher's
    variables contradict each other no process knows its rank, and each reports that. What storage refuses is told
    like a mistake.
    """
    print_any_name()
    try:
        if not {"-h", "--help"} & set(sys.argv[1:]):
            require_launcher(os.environ)
    except UserError as error:
        _end(str(error))
    try:
        with storage_in_one_line():
            try:
                main()
            finally:
                sys.stdout.flush()  # what is wrong with it shows here
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if "torch" in sys.modules:  # there was work, which ends here
            print("error: stopped: nobody reads the output any more", file=sys.stderr)
        sys.exit(128 + signal.SIGPIPE)  # as of a program that `head` has ended
    except Preempted as stop:
        if is_main_rank(os.environ):
            print(stop, file=sys.stderr)
        sys.exit(PREEMPTED_STATUS)
    except UserError as error:
        alike = isinstance(error, AgreedError) or not _in_process_group()
        _end(str(error), tell=is_main_rank(os.environ) if alike else _is_first_to_find(str(error)))
    finally:
        if _in_process_group():
            import torch

            torch.distributed.destroy_process_group()


def _end(problem: str, *, tell: bool = True) -> NoReturn:
    if tell:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _in_process_group() -> bool:
    """Whether there is a process group; there is none as long as nobody has imported torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _is_first_to_find(problem: str) -> bool:
    from pmf.distributed.world import is_first_to_find  # torch is there by now

    return is_first_to_find(problem)
