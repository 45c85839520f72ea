"""The drawn world: `python launch.py bench scenes PART`, one part after the other.

    teacher     trains the teacher that is shipped
    judges      trains the judges that are shipped
    solvers     the teacher's curve over network calls, and the floors
    students    students of every method beside it
    pages       writes the pages, the chart and the README's tables anew from the results; seconds

Each resumes, and without a part the last three run.
"""

from __future__ import annotations

import argparse

from . import curves, judges, readme, students, teacher

PARTS = {
    "teacher": teacher.main,
    "judges": judges.main,
    "solvers": curves.main,
    "students": students.main,
    "pages": readme.main,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS, nargs="?")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    for part in [chosen.part] if chosen.part else ["solvers", "students", "pages"]:
        PARTS[part](chosen.options)
