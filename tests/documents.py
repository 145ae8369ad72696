"""Reading the repository's Markdown: links, headings, fenced blocks, code spans, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.launch import ROOT

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block and the language that stands behind its fence."""

    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks."""
    return [Block(*found) for found in _FENCE.findall(document.read_text())]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return _FENCE.sub("", document.read_text())


def links(document: Path) -> list[str]:
    """Targets of links and images that are not on the web."""
    return [target for target in _LINK.findall(prose(document)) if not re.match(r"https?:|mailto:", target)]


def spans(document: Path) -> list[str]:
    """Inline code, each line break within it as a space."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(document))]


def anchors(document: Path) -> set[str]:
    """What a link can name behind ``#``: GitHub's form of each heading, the second of equal ones with ``-1``."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose(document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return {f"{anchor}-{found[:i].count(anchor)}" if anchor in found[:i] else anchor for i, anchor in enumerate(found)}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without prompts, comments, variables set before, redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        ends = [place for place, word in enumerate(words) if word in ("|", ">", ">>", "&&")]
        words = words[: min(ends, default=len(words))]
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


def braces(text: str) -> list[str]:
    """``a_{b,c}`` as the shell expands it."""
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        return [text]
    return [path for part in found[1].split(",") for path in braces(text[: found.start()] + part + text[found.end() :])]
