"""Trains a run folder that Write Run made, or goes on with one that stopped. Ctrl-C saves and stops.

The teacher is made by ComfyUI's own nodes from the run's kept graph, the data come from the run's own cache.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..launch import parsed_with_host_options
from ..trainers.processes.group import Processes, ProcessLost, StoppedElsewhere
from ..trainers.storage.run_folder import RunFolder
from ..trainers.training.distillation import Recorded
from ..trainers.training.loop import Metrics
from ..trainers.training.optimisation.tally import NonFiniteLoss
from ..trainers.training.out_of_memory import OutOfMemory
from .demo import Terminal
from .embedded import import_host, node_classes

FOR_THE_USER = (ValueError, OSError, NonFiniteLoss, OutOfMemory, ProcessLost)
"""What says in words what to do: a traceback would hide them."""


def base_of(run: Path) -> Path:
    """The folder with models and output that a run folder <base>/output/fewstep/runs/<name> belongs to."""
    output = output_of(run)
    if output is None or output.name != "output":
        if not run.is_dir():  # then --base is not what is missing
            raise ValueError(f"{run} is no folder; give the run's own: ComfyUI/output/fewstep/runs/<run name>.")
        raise ValueError(
            f"{run} is not within a ComfyUI's output/fewstep/runs; say with --base where its models folder is."
        )
    return output.parent


def output_of(run: Path) -> Path | None:
    """The output folder that a run folder <output>/fewstep/runs/<name> is in, wherever that is; None for one elsewhere."""
    return run.parents[2] if [parent.name for parent in list(run.parents)[:2]] == ["runs", "fewstep"] else None


def classes_for(run: RunFolder) -> dict[str, Any]:
    """The node classes by name that a run's teacher is made with, those of other packs where it needs them. After import_host."""
    from ..nodes import NODE_CLASS_MAPPINGS
    from ..nodes.distillation import worker

    classes = {**node_classes(), **NODE_CLASS_MAPPINGS}
    if not worker.node_kinds(run) <= classes.keys():
        classes = {**node_classes(custom=True), **NODE_CLASS_MAPPINGS}
    return classes


def train(run: RunFolder, *, base: Path, host_options: list[str], processes: Processes) -> Path | None:
    """Trains what is left. The student's file, on the first process. ValueError for what cannot be trained."""
    Recorded.of(run)  # what is damaged is refused before the host is imported
    import_host(*host_options, base=base, output=output_of(run.path))
    from ..nodes.distillation import worker

    terminal = Terminal()

    def say(metrics: Metrics) -> None:
        if metrics.logged:  # before, there is no loss to tell
            terminal.training(vars(metrics))

    return worker.train_folder(run, classes=classes_for(run), processes=processes, say=say)


def base_for(arguments: argparse.Namespace, run: Path) -> Path:
    """As it was given, else the run's own. ValueError where there is no such folder: the host would make it."""
    if arguments.base and not arguments.base.is_dir():
        raise ValueError(f"--base is {str(arguments.base)!r}, which is no folder; give that with models/ in it.")
    return (arguments.base or base_of(run)).resolve()


def arguments_of(command: str, about: str | None) -> argparse.Namespace:
    """Of a command on a run folder."""
    parser = argparse.ArgumentParser(prog=command, description=about)
    parser.add_argument("run", type=Path, help="the run's folder: ComfyUI/output/fewstep/runs/<run name>")
    parser.add_argument(
        "--base", type=Path, help="folder with models/ and custom_nodes/ (default: the run's own ComfyUI)"
    )
    return parsed_with_host_options(parser, sys.argv[1:])


def main() -> None:
    arguments = arguments_of("launch.py train", __doc__)
    path = Path.cwd() / arguments.run  # as it was given: a run that is a link is not followed
    try:
        base = base_for(arguments, path)
        with Processes.from_environment() as processes:  # first: it chooses the GPU that the host then takes
            run = RunFolder(path.parent, path.name)
            student = train(run, base=base, host_options=arguments.host_options, processes=processes)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.")
        sys.exit(130)
    except StoppedElsewhere:
        sys.exit(130)  # the process that was asked says so
    except FOR_THE_USER as error:
        sys.exit(f"launch.py train: {error}")
    if student:
        print(f"\nThe student: {student}")
    processes.leave()


if __name__ == "__main__":
    main()
