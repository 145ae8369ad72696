"""The tables of docs/scaling.md are what the command prints."""

from __future__ import annotations

import pytest

from benchmarks.scaling.__main__ import RECIPES
from benchmarks.scaling.tables import tables
from pmf.config.yaml_file import load_config
from tests.launch import ROOT

DOCUMENT = (ROOT / "docs" / "scaling.md").read_text()


def test_the_document_has_a_table_for_each_recipe_and_says_that_it_is_computed():
    assert [line for line in DOCUMENT.splitlines() if line.startswith("### ")] == [
        f"### pmf_{size}_16, 256 pixels, global batch 1024" for size in "blh"
    ]
    assert "computed, not measured" in " ".join(DOCUMENT.split())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES[:1])  # the others take minutes: python -m benchmarks.scaling
def test_the_command_prints_what_the_document_says(recipe):
    printed = "\n".join(tables(load_config(ROOT / recipe), [8, 64, 1024]))
    assert printed in DOCUMENT
