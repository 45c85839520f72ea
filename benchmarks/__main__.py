"""`python launch.py bench`: measures what the README reports."""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path

BENCHMARKS = {
    "architectures": "architectures/command.py",
    "digits": "digits.py",
    "gpu": "gpu/command.py",
    "plan": "plan/command.py",
    "samplers": "samplers.py",
    "scenes": "scenes/command.py",
    "templates": "templates/command.py",
    "training": "training/command.py",
}
"""Imported when they are asked for: what they are is told before there is an environment that they could run in."""


def _about(file: str) -> str | None:
    return ast.get_docstring(ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8")), clean=False)


def main() -> None:
    listing = "\n".join(f"  {name}: {_about(file)}" for name, file in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="launch.py bench", description=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    module = BENCHMARKS[arguments.name].removesuffix(".py").replace("/", ".")
    importlib.import_module(f".{module}", __package__).main(arguments.options)


if __name__ == "__main__":
    main()
