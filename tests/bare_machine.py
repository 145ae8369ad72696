"""Pytest without packages that a bare GPU machine does not have: python tests/bare_machine.py ARGUMENTS"""

import sys

import pytest

MISSING = ("torch_fidelity", "lpips", "wandb", "datasets")

if __name__ == "__main__":
    for name in [module for module in sys.modules if module.partition(".")[0] in MISSING]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(MISSING))  # None: an import of it is a ModuleNotFoundError
    sys.exit(pytest.main(sys.argv[1:]))
