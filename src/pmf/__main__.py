"""``python -m pmf`` is the command ``pmf``, also behind torchrun and accelerate: ``torchrun ... -m pmf train ...``."""

from pmf.cli.entry import pmf

if __name__ == "__main__":
    pmf()
