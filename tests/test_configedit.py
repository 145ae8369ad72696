"""Numbers written into a config change those bytes alone, and a crash leaves one text or the other."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pmf.config.edit import read_exactly, with_numbers, write_exactly
from pmf.errors import UserError
from tests.launch import ROOT, started

MICRO = {"training.micro_batch_size": 16}
BOTH = {"training.micro_batch_size": 16, "training.global_batch_size": 96}

CASES = {
    "comments and quotes": (
        "# top\nmodel: {name: 'pmf_tiny_2'}\n\ntraining:\n  # sizes\n  global_batch_size:   64  # all ranks\n"
        '  micro_batch_size: 8   # each\n  mixed_precision: "no"\n\n\n# end\n',
        MICRO,
        "  micro_batch_size: 8   #",
        "  micro_batch_size: 16   #",
    ),
    "null": ("training: \n    micro_batch_size: null # yet\n", MICRO, "null", "16"),
    "nothing after the colon": ("training:\n  micro_batch_size:\n  seed: 1\n", MICRO, "size:", "size: 16"),
    "flow mapping": ("training: { seed: 1,micro_batch_size : 8 }\n", MICRO, ": 8", ": 16"),
    "flow mapping without the key": ("training: {seed: 1}  # x\n", MICRO, "{", "{micro_batch_size: 16, "),
    "empty flow mapping": ("training: {}\n", MICRO, "{", "{micro_batch_size: 16"),
    "all in one flow mapping": ("{model: {name: a}}", MICRO, "{model", "{training: {micro_batch_size: 16}, model"),
    "CRLF": (
        "training:\r\n  micro_batch_size: 8\r\n  seed: 1\r\n",
        MICRO,
        "micro_batch_size: 8\r\n",
        "micro_batch_size: 16\r\n",
    ),
    "missing key, CRLF": (
        "training:\r\n   # of all\r\n   seed: 1\r\n",
        MICRO,
        "training:\r\n",
        "training:\r\n   micro_batch_size: 16\r\n",
    ),
    "missing key beside the global one": (
        "training:\n  seed: 1\n  global_batch_size: 64  # all\n  tf32: true\nema:\n  decays: []\n",
        MICRO,
        "# all\n",
        "# all\n  micro_batch_size: 16\n",
    ),
    "missing key, no last line end": (
        "training:\n  global_batch_size: 64",
        MICRO,
        ": 64",
        ": 64\n  micro_batch_size: 16",
    ),
    "missing section": ("model:\n  name: a\n", MICRO, "a\n", "a\ntraining:\n  micro_batch_size: 16\n"),
    "missing section, no last line end": (
        "model:\n  name: a  # b",
        MICRO,
        "# b",
        "# b\ntraining:\n  micro_batch_size: 16",
    ),
    "section with nothing in it": (
        "training:\nmodel: {name: a}\n",
        MICRO,
        "training:",
        "training: {micro_batch_size: 16}",
    ),
    "hexadecimal digits in other places, non-ASCII": (
        "# Größe 8 → 8\ntraining:\n  seed: 8\n  micro_batch_size: 8\n",
        MICRO,
        "_size: 8",
        "_size: 16",
    ),
    "both": (
        "training:\n  micro_batch_size: 8\n  seed: 1\n  global_batch_size: 64\n",
        BOTH,
        "  micro_batch_size: 8\n  seed: 1\n  global_batch_size: 64\n",
        "  micro_batch_size: 16\n  seed: 1\n  global_batch_size: 96\n",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_other_byte_stays(case, tmp_path):
    text, numbers, before, after = case
    assert text.count(before) == 1
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode())
    write_exactly(path, with_numbers(read_exactly(path), numbers, "a.yaml"))
    assert path.read_bytes() == text.replace(before, after).encode()
    assert with_numbers(read_exactly(path), numbers, "a.yaml") == read_exactly(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_can_be_written_to(path):
    lines = read_exactly(path).splitlines()
    edited = with_numbers(read_exactly(path), MICRO, str(path)).splitlines()
    (new,) = [line for line in edited if line not in lines]
    assert new == "  micro_batch_size: 16"
    others = [line for line in lines if not line.startswith("  micro_batch_size:")]  # one recipe states it
    assert [line for line in edited if line != new] == others


def test_what_cannot_be_changed_alone_is_left_to_the_user():
    with pytest.raises(UserError, match=r"^a\.yaml: .*training\.micro_batch_size: 16$"):
        with_numbers("data: {num_classes: &n 8}\ntraining: {micro_batch_size: *n}\n", MICRO, "a.yaml")


def test_links_and_permissions_stay(tmp_path):
    target, link = tmp_path / "a.yaml", tmp_path / "link.yaml"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_exactly(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


@dataclass(frozen=True)
class Writer:
    """Writes two texts by turns, for ever."""

    path: Path

    def __call__(self, _rank: int) -> None:
        print("ready", flush=True)
        while True:
            write_exactly(self.path, "b" * 2_000_000)
            write_exactly(self.path, "a" * 3_000_000)


@pytest.mark.parametrize("delay", [0.003, 0.01, 0.02, 0.05])
def test_a_writer_that_is_killed_leaves_one_text_or_the_other(tmp_path, delay):
    path = tmp_path / "a.yaml"
    path.write_text("a" * 3_000_000)
    with started(Writer(path), tmp_path / "printed") as writer:
        writer.wait_until(lambda: writer.printed() == "ready\n")
        time.sleep(delay)
        writer.signal(signal.SIGKILL)
        assert writer.wait() == [-signal.SIGKILL]
    assert path.read_text() in ("a" * 3_000_000, "b" * 2_000_000)
