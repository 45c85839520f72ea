"""Says what a run folder that Write Run made will take: iterations of every stage are tried here, and nothing is written.

The teacher is made by ComfyUI's own nodes from the run's kept graph, the data come from the run's own cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..trainers.storage.run_folder import RunFolder
from ..trainers.training.distillation import Recorded
from ..trainers.training.plan import Plan
from .embedded import import_host
from .train import FOR_THE_USER, arguments_of, base_for, classes_for, output_of


def plan(run: RunFolder, *, base: Path, host_options: list[str]) -> Plan:
    """ValueError for what cannot be trained, or does not fit."""
    Recorded.of(run)  # what is damaged is refused before the host is imported
    import_host(*host_options, base=base, output=output_of(run.path))
    from ..nodes.distillation import worker

    return worker.plan_folder(run, classes=classes_for(run))


def main() -> None:
    arguments = arguments_of("launch.py plan", __doc__)
    path = Path.cwd() / arguments.run
    try:
        base = base_for(arguments, path)
        found = plan(RunFolder(path.parent, path.name), base=base, host_options=arguments.host_options)
    except KeyboardInterrupt:
        sys.exit(130)
    except FOR_THE_USER as error:
        sys.exit(f"launch.py plan: {error}")
    print("\n".join(found.told()))
    if not found.fits:
        most = found.needs.most_rows(found.room, batch_size=found.options.batch_size)
        wanted = f"raise accumulation to {found.options.batch_size // most}" if most else "take smaller pictures"
        more = "" if found.options.gradient_checkpointing else ", or switch gradient_checkpointing on"
        sys.exit(f"launch.py plan: this does not fit; {wanted}{more}.")


if __name__ == "__main__":
    main()
