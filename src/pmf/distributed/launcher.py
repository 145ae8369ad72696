"""The environment variables by which a launcher tells a process its place: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

from pmf.errors import UserError

LEAST = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
"""Variables that say which process this is, and their smallest values. One of them makes all of NEEDED necessary."""
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""How many processes mpirun or srun started; on a CPU Accelerate would make a group of them from half a set."""
NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Without LOCAL_RANK, Accelerate takes a process on a GPU for a run of its own; torch asks for the other four."""


def require_launcher(environment: Mapping[str, str]) -> None:
    """The variables of a process group are all there and agree, or there are none.

    Clusters set some of them in every pod, and scripts export them for other programs. SLURM's own are not looked at,
    and neither are MASTER_ADDR and MASTER_PORT alone, which ``accelerate launch --cpu`` sets for a single process.

    Raises:
        UserError: some are missing, or have values that cannot be; names what is set and what is missing.
    """
    given = [name for name in LEAST if name in environment]
    given += [name for name in MPI_SIZES if environment.get(name, "1") != "1"]
    if not given:
        return
    there = [name for name in (*given, "MASTER_ADDR", "MASTER_PORT") if name in environment]
    missing = [name for name in NEEDED if name not in environment]
    problem = f"not {_listed(missing)}" if missing else _contradiction(environment)
    if problem:
        values = ", ".join(f"{name}={environment[name]}" for name in there)
        raise UserError(
            f"the environment has {values}, but {problem}; start with torchrun or accelerate launch, which set them "
            f"all, or, for a single process, leave them out: env{''.join(f' -u {name}' for name in given)} python ..."
        )


def is_main_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process is the one that talks; known before there is a process group."""
    return int(environment.get("RANK", "0")) == 0


def _contradiction(environment: Mapping[str, str]) -> str | None:
    """What is wrong with a set in which nothing is missing; None if nothing is."""
    numbers: dict[str, int] = {}
    for name, least in LEAST.items():
        text = environment.get(name)
        if text is not None:
            if not (text.isascii() and text.isdigit() and int(text) >= least):
                return f"{name} is {_shown(text)}, not a whole number from {least}"
            numbers[name] = int(text)
    port = environment["MASTER_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return f"MASTER_PORT is {_shown(port)}, not a port from 1 to 65535"
    if not environment["MASTER_ADDR"].strip():
        return "MASTER_ADDR is empty"
    for smaller, larger in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE")):
        if larger in numbers and numbers[smaller] >= numbers[larger]:
            return f"{smaller} must be less than {larger}"
    if numbers.get("LOCAL_WORLD_SIZE", 1) > numbers["WORLD_SIZE"]:
        return "LOCAL_WORLD_SIZE must not be more than WORLD_SIZE"
    return None


def _shown(text: str) -> str:
    return text if text.strip() else "empty"


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
