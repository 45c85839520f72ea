"""The drawn world: `python launch.py bench scenes PART`, one part after the other.

    teacher     trains the teacher that is shipped
    judges      trains the judges that are shipped
    solvers     the teacher's curve over network calls, and the floors
    students    students of every method beside it
    ablation    what the teacher's network predicts and how its loss is weighed
    pages       writes the pages, the chart and the README's tables anew from the results; seconds

Each resumes, and without a part the last four run.
"""

from __future__ import annotations

import argparse

from . import ablation, curves, readme, students
from .judging import judges
from .model import teacher

PARTS = {
    "teacher": teacher.main,
    "judges": judges.main,
    "solvers": curves.main,
    "students": students.main,
    "ablation": ablation.main,
    "pages": readme.main,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS, nargs="?")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    for part in [chosen.part] if chosen.part else ["solvers", "students", "ablation", "pages"]:
        PARTS[part](chosen.options)
