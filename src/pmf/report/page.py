"""``README.md`` of a run folder: what was run, what came of it, and the commands that go on from here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pmf.config.sections import Config
from pmf.files import complete_or_absent
from pmf.optim.options import kept_averages
from pmf.report.facts import RunFacts
from pmf.report.markdown import fid_cell, inception_cell, reference_cell, table

MARKER = "<!-- Written by pmf. Delete this line to keep the page as you change it. -->"
"""First line of a page that may be replaced."""
FILES = {
    "config.yaml": "every option of the run, resolved",
    "environment.json": "versions, hardware and commit of the last start",
    "metrics.jsonl": "a line of numbers every few steps; `curves.png` is drawn from it",
    "curves.png": "these numbers as curves",
    "checkpoints/": "model, averages and optimizer as safetensors, with a manifest of sizes and hashes",
    "evaluation/": "each FID with its whole protocol, as JSON",
    "samples/": "grids of samples by step (always of the same noise), `strip.png`, and what was asked for at the end",
    "tensorboard/": "event files: `tensorboard --logdir .`",
    "preempted": "the run was asked to stop and waits to be continued",
}


def is_ours(path: Path) -> bool:
    """Whether a page may be written there: nothing is there, or what is there was written here."""
    try:
        with path.open(errors="replace") as file:
            return file.readline().rstrip("\n") == MARKER
    except FileNotFoundError:
        return True


def write_page(run_folder: Path, facts: RunFacts, *, checkpoint_step: int) -> None:
    """Write the page.

    Args:
        run_folder: relative to the folder where its commands are to be started, or absolute.
        facts: how far the run is.
        checkpoint_step: of the newest checkpoint; 0 without one.

    Raises:
        OSError: it cannot be written.
    """
    parts = [
        f"{MARKER}\n# {run_folder.absolute().name}",
        _status(run_folder, facts, checkpoint_step),
        table(_what_was_run(facts).items()),
        *_results(run_folder, facts),
        "## Go on from here",
        _commands_text(run_folder, facts),
        "## Files",
        "\n".join(f"- `{name}`: {text}" for name, text in FILES.items() if (run_folder / name).exists()),
    ]
    with complete_or_absent(run_folder / "README.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", errors="backslashreplace")


def commands(run_folder: Path, facts: RunFacts) -> dict[str, str]:
    """Shell commands by what they do (``resume``, ``sample``, ``evaluate``), for where the run was started."""
    run, config = str(run_folder), facts.config
    evaluation = config.evaluation
    reference = evaluation.reference or ("digits" if config.data.kind == "digits" else f"{run}/config.yaml")
    fid = ["fid", "--checkpoint", run, "--reference", reference]
    if evaluation.every_images:
        fid += ["--num-images", str(evaluation.num_images), "--seed", str(config.training.seed)]  # as in training
    for option, value in (("--extractor", evaluation.extractor), ("--extractor-weights", evaluation.extractor_weights)):
        fid += [option, value] if value else []
    more = ["sample", "--checkpoint", run, "--output", f"{run}/samples/more", "--num-images", "100"]
    again = ["--config", f"{run}/config.yaml"]
    if Path(config.training.output_dir) != run_folder:  # moved or copied, or called something else from here
        again.append(f"training.output_dir={run}")
    return {
        "resume": _shell(facts, "train", again, _processes(facts)),
        "sample": _shell(facts, "eval", more),
        "evaluate": _shell(facts, "eval", fid),
    }


def _shell(facts: RunFacts, script: str, arguments: list[str], processes: int = 1) -> str:
    """A command as the run itself was started: by the scripts or by the installed command, with or without uv."""
    started = facts.environment.get("command") or [""]
    uv = ["uv", "run"] if facts.environment.get("uv") else []
    if Path(started[0]).name == "train.py":
        path = str(Path(started[0]).with_name(f"{script}.py"))
        if processes > 1:
            words = [*uv, "torchrun", "--nproc_per_node", str(processes), path, *arguments]
        else:
            words = [*(uv or ["python"]), path, *arguments]
    elif processes > 1:
        words = [*uv, "torchrun", "--nproc_per_node", str(processes), "-m", "pmf", script, *arguments]
    else:
        words = [*uv, "pmf", *([script] if script == "train" else []), *arguments]
    return shlex.join(words)


def _processes(facts: RunFacts) -> int:
    """Of one machine, where the run had one; else nobody knows from here how it was launched."""
    ranks, of_machine = (facts.environment.get(name, 1) for name in ("world_size", "local_world_size"))
    return int(ranks) if ranks == of_machine else 1


def _status(run_folder: Path, facts: RunFacts, checkpoint_step: int) -> str:
    where = f"step {facts.step:,} of {facts.max_steps:,} ({facts.step / max(facts.max_steps, 1):.0%})"
    if facts.step >= facts.max_steps and checkpoint_step == facts.step:
        return f"**Finished**: {where}."
    if (run_folder / "preempted").exists():
        return f"**Stopped on request** at {where}, which is saved. The command to resume stands below."
    saved = f"the newest checkpoint is of step {checkpoint_step:,}" if checkpoint_step else "no checkpoint yet"
    return f"At {where} when this was written; {saved}."


def _what_was_run(facts: RunFacts) -> dict[str, str]:
    config, environment = facts.config, facts.environment
    data, training, optimizer, sampling = config.data, config.training, config.optimizer, config.sampling
    images = environment.get("num_images")
    of_all = f", {facts.images_seen / images:.1f} passes over {images:,}" if images else ""
    averages = ", ".join(f"`{average.name}`" for average in kept_averages(config.ema))
    packages = environment.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in ("pmf", "torch", "accelerate") if name in packages]
    versions += [f"Python {environment['python']}"] if "python" in environment else []
    ranks = environment.get("world_size", 1)
    low, high = sampling.interval
    return {
        "Method": f"`{config.objective.name}`",
        "Model": f"`{config.model.name}`",
        "Data": f"`{data.kind}`{_of_path(config)}, {data.image_size}x{data.image_size}x{data.channels}, "
        f"{data.num_classes:,} classes",
        "Images seen": f"{facts.images_seen:,}{of_all}",
        "Batch": f"{training.global_batch_size:,} images",
        "Optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}, {optimizer.schedule}",
        "Precision": training.mixed_precision if training.mixed_precision != "no" else "float32",
        "Seed": str(training.seed),
        "Averages": f"{averages or 'none'}; samples are of `{sampling.ema}`",
        "Sampling": f"{sampling.num_steps} step(s), omega {sampling.omega:g} for t in [{low:g}, {high:g}]",
        "Hardware": f"{ranks} process(es) on {environment.get('device', 'an unknown device')}",
        "Software": ", ".join(versions) or "not recorded",
        "Commit": f"`{environment['commit']}`" if environment.get("commit") else "not run from a checkout",
    }


def _of_path(config: Config) -> str:
    path = config.data.path
    return f" (`{path}`)" if path else ""


def _results(run_folder: Path, facts: RunFacts) -> Iterable[str]:
    scored = [record for record in facts.evaluations if "step" in record]
    pictures = {
        "curves.png": "Losses, FID and speed against the images seen",
        "samples/strip.png": "One image of each class over the steps, from the same noise",
        "samples/final.png": "Final samples, a row for each class",
    }
    there = [f"![{text}]({name})" for name, text in pictures.items() if (run_folder / name).exists()]
    if scored or there:
        yield "## Results"
    if scored:
        best = min(scored, key=lambda record: float(record["fid"]))
        yield _scores({"last": scored[-1], "best": best})
        yield _protocol(scored[-1], len(scored))
    yield from there


def _scores(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, f"{record['step']:,}", f"{record['images_seen']:,}", fid_cell(record), inception_cell(record))
        for name, record in records.items()
    ]
    return table(rows, ("", "step", "images seen", "FID", "Inception score"))


def _protocol(record: Mapping[str, Any], number: int) -> str:
    extractor = record.get("extractor", {}).get("name", "unknown")
    return (
        f"FID of {record.get('num_images', 0):,} images by the extractor {extractor} against {reference_cell(record)}; "
        f"{number} evaluation(s), each with its protocol in `evaluation/`."
    )


def _commands_text(run_folder: Path, facts: RunFacts) -> str:
    texts = {
        "resume": "Continue after a stop or a crash, or with a larger `training.max_steps=N` at the end of the line",
        "sample": "More samples of it; image i depends on the seed and i alone",
        "evaluate": "FID",
    }
    here = "" if run_folder.is_absolute() else f"From `{os.getcwd()}`:\n\n"
    found = commands(run_folder, facts)
    return here + "\n\n".join(f"{text}:\n\n```bash\n{found[name]}\n```" for name, text in texts.items())
