"""`python launch.py bench`: measures what the README reports."""

from __future__ import annotations

import argparse

from . import digits, samplers
from .architectures import command as architectures
from .gpu import command as gpu
from .plan import command as plan
from .scenes import command as scenes
from .templates import command as templates
from .training import command as training

BENCHMARKS = {
    "architectures": architectures,
    "digits": digits,
    "gpu": gpu,
    "plan": plan,
    "samplers": samplers,
    "scenes": scenes,
    "templates": templates,
    "training": training,
}


def main() -> None:
    listing = "\n".join(f"  {name}: {module.__doc__}" for name, module in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="launch.py bench", description=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    BENCHMARKS[arguments.name].main(arguments.options)


if __name__ == "__main__":
    main()
