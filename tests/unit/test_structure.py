"""The plan of the house, kept by a test: what may import what, and what every file must be."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
HOST = {"comfy", "comfy_extras", "comfy_api", "folder_paths", "execution", "server", "nodes", "latent_preview"}
FLOORS = [
    "benchmarks",
    "benchmarks/templates",
    "benchmarks/plan",
    "benchmarks/gpu",
    "benchmarks/architectures",
    "benchmarks/training",
    "benchmarks/scenes",
    "benchmarks/scenes/tables",
    "benchmarks/scenes/judging",
    "benchmarks/scenes/model",
    "benchmarks/scenes/engine",
    "commands",
    "nodes",
    "nodes/distillation/reports",
    "nodes/distillation/fast",
    "nodes/distillation",
    "nodes/distillation/data",
    "nodes/distillation/learning",
    "nodes/sampling",
    "nodes/demo",
    "nodes/host",
    "nodes/host/teachers",
    "nodes/host/files",
    "nodes/host/memory",
    "nodes/host/editor",
    "nodes/host/sampling",
    "trainers",
    "trainers/runs",
    "trainers/training",
    "trainers/training/optimisation",
    "trainers/methods",
    "trainers/students",
    "trainers/objective",
    "trainers/measures",
    "trainers/data",
    "trainers/storage",
    "trainers/processes",
    "samplers/presets",
    "samplers",
    "launch.py",
]
"""Rooms and wings from the top down: a file may import from its own floor and from those below."""
LISTED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "*.py"],
    capture_output=True,
    text=True,
    check=True,
)
FILES = [ROOT / name for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]


def imports(path):
    """(absolute top-level names, the files of ours) that a file imports anywhere in it."""
    absolute, ours = set(), set()
    package = path.parent
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [package, *package.parents][node.level - 1].joinpath(*(node.module or "").split("."))
            ours |= {file_of(base / alias.name) or file_of(base) for alias in node.names}
    return absolute, ours


def file_of(module):
    """Of a module by its path without an ending; None for a name that is none."""
    return next((f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()), None)


def in_room(path, room):
    return path.relative_to(ROOT).parts[0] == room


def floor(path):
    """The number of the wing that a file lies in. launch.py and __init__.py of the whole are in none."""
    inside = path.relative_to(ROOT)
    return FLOORS.index(inside.name if len(inside.parts) == 1 else inside.parent.as_posix())


PACKAGE = [
    f for f in FILES if f.relative_to(ROOT).parts[0] in ("benchmarks", "commands", "nodes", "samplers", "trainers")
]
ENTRIES = {"trainers/__main__.py"}
"""Started from outside; nobody imports them."""


@pytest.mark.parametrize(
    "path", [f for f in FILES if in_room(f, "samplers") or in_room(f, "trainers")], ids=lambda p: p.stem
)
def test_pure_rooms_never_import_the_host(path):
    assert not imports(path)[0] & HOST


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_arrows_point_down(path):
    """Wing by wing. Every folder with Python files is a floor: a new one is drawn here first."""
    here = floor(path)
    if path.relative_to(ROOT).as_posix() not in ENTRIES:
        up = [target.relative_to(ROOT).as_posix() for target in imports(path)[1] if floor(target) < here]
        assert up == []


def test_no_file_imports_itself_in_a_circle():
    arrows = {path: imports(path)[1] - {path} for path in PACKAGE}
    list(graphlib.TopologicalSorter(arrows).static_order())  # CycleError names the files


@pytest.mark.parametrize("path", [f for f in PACKAGE if f.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_every_wing_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_one_wing_knows_the_host():
    """nodes/host hides what differs between hosts; digits_model.py is made of host classes."""
    knowing = {path for path in FILES if in_room(path, "nodes") and imports(path)[0] & HOST}
    elsewhere = {path.name for path in knowing if ROOT / "nodes" / "host" not in path.parents}
    assert elsewhere == {"digits_model.py"}
    assert len(knowing) > len(elsewhere)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_is_ascii_and_files_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert text.count("\n") <= 400


def test_no_file_of_the_tests_is_imported_under_two_names():
    """Its operators and patches would be registered twice, and what the first ones hold of torch is freed memory then."""
    tests, names = ROOT / "tests", {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(tests):
            names.setdefault(file, []).append(name)
    assert names
    assert not {file: twice for file, twice in names.items() if len(twice) > 1}


def test_launch_needs_the_standard_library_only():
    absolute, ours = imports(ROOT / "launch.py")
    assert absolute - {"_winapi"} <= set(sys.stdlib_module_names)
    assert not ours


def test_the_manager_installs_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert sorted(listed) == sorted(project["dependencies"])
    assert not any(name.startswith(("torch", "numpy")) for name in listed)


def test_importing_the_library_imports_no_host():
    code = (
        "import sys; import comfyui_fewstep, comfyui_fewstep.samplers.few_step, comfyui_fewstep.trainers.training.distillation; "
        f"sys.exit(sorted(set(sys.modules) & {HOST!r}) != [])"
    )
    packages = ROOT / ".fewstep" / "packages"
    if not packages.exists():
        pytest.skip("made by launch.py")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(packages), "PATH": ""}, check=False)
    assert done.returncode == 0


def test_every_file_of_the_package_is_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {name.replace("comfyui_fewstep", "", 1).strip(".").replace(".", "/") for name in settings["packages"]}
    rooms = {str(p.parent.relative_to(ROOT)).replace(".", "", 1) for p in FILES if p.name == "__init__.py"}
    assert shipped == rooms
