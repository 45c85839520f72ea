"""The plan of the house, kept by a test: what may import what, and what every file must be."""

import ast
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
FLOORS = ["samplers", "trainers", "nodes"]
LISTED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "*.py"],
    capture_output=True,
    text=True,
    check=True,
)
FILES = [ROOT / name for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]


def imports(path):
    """(absolute top-level names, relative targets as parts from the root) of a file."""
    absolute, relative = set(), []
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            relative.append([*base, *(node.module or "").split("."), *(alias.name for alias in node.names)])
    return absolute, [[part for part in parts if part] for parts in relative]


def in_room(path, room):
    return path.relative_to(ROOT).parts[0] == room


@pytest.mark.parametrize(
    "path", [f for f in FILES if in_room(f, "samplers") or in_room(f, "trainers")], ids=lambda p: p.stem
)
def test_pure_rooms_never_import_the_host(path):
    assert not imports(path)[0] & HOST


@pytest.mark.parametrize("floor", [0, 1, 2])
def test_arrows_point_down(floor):
    """__main__.py is an entry from outside: nobody imports it."""
    above = {*FLOORS[floor + 1 :], "commands"}
    for path in (f for f in FILES if in_room(f, FLOORS[floor]) and f.name != "__main__.py"):
        for target in imports(path)[1]:
            assert target[0] not in above, f"{path.name} imports {'.'.join(target)}"


def test_few_files_know_the_host():
    """host*.py hide what differs between hosts, folders.py where files lie; digits_model.py is made of host classes."""
    knowing = {path.name for path in FILES if in_room(path, "nodes") and imports(path)[0] & HOST}
    hosts = {"host.py", "host_data.py", "host_guidance.py", "host_training.py"}
    assert knowing == hosts | {"folders.py", "digits_model.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_is_ascii_and_files_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert text.count("\n") <= 400


def test_launch_needs_the_standard_library_only():
    absolute, relative = imports(ROOT / "launch.py")
    assert absolute - {"_winapi"} <= set(sys.stdlib_module_names)
    assert not relative


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
