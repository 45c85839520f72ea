"""What a user gets: the shipped weights, and the wheel; and whether what the launcher pins can be installed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from comfyui_fewstep.trainers.storage.files import read_metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["digits_teacher", "digits_classifier"])
def test_shipped_weights_are_small_and_say_where_they_come_from(name):
    path = ROOT / "assets" / f"{name}.safetensors"
    assert path.stat().st_size <= 2 * 2**20
    metadata = read_metadata(path)
    assert "load_digits" in metadata["data"]
    assert metadata["command"].startswith("python launch.py train-demo-")
    assert f"--seed {metadata['seed']} --iterations {metadata['iterations']}" in metadata["command"]


def test_the_wheel_holds_the_pack_and_not_the_tests(tmp_path):
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", str(tmp_path), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "__init__.py",
        "samplers/noise.py",
        "trainers/methods/progressive.py",
        "nodes/host/sampling/models.py",
        "assets/digits_teacher.safetensors",
        "web/docs/FewStepDistill.md",
        "workflows/Distil digits to 4 steps.json",
        "workflows/api/Distil digits to 4 steps.json",
        "prompts/everyday.txt",
    ):
        assert f"comfyui_fewstep/{wanted}" in held
    assert not any("tests/" in name for name in held)


@pytest.mark.parametrize("workflow", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_has_a_picture_for_the_template_browser(workflow):
    picture = workflow.with_suffix(".jpg")
    assert picture.stat().st_size < 200_000
    with Image.open(picture) as content:
        content.load()
        assert content.size[0] >= 400


def test_pictures_of_help_pages_are_there_and_light():
    """Each page has one, beside the pages, where hosts look for them."""
    docs = ROOT / "web" / "docs"
    of_pages = {page.stem: re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text()) for page in docs.glob("*.md")}
    assert [page for page, names in of_pages.items() if not names] == []
    shown = {name for names in of_pages.values() for name in names}
    assert shown == {picture.name for picture in docs.glob("*.jpg")}
    assert all((docs / name).stat().st_size < 200_000 for name in shown)


def test_pictures_of_the_readme_are_there():
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", readme)
    assert len(shown) >= 3
    assert all((ROOT / (one or other)).is_file() for one, other in shown)


def pinned_for(python):
    """Of requirements/, the names that are pinned to the release which is installed here, where that Python is to have it."""
    for file in (ROOT / "requirements").glob("*.txt"):
        if file.name == "comfyui.txt":
            continue  # whatever it says of itself it is installed
        for line in file.read_text(encoding="utf-8").splitlines():
            if "==" not in line or line.startswith("#"):
                continue
            wanted = Requirement(line)
            installed = importlib.metadata.version(wanted.name)
            if installed in wanted.specifier and (
                wanted.marker is None or wanted.marker.evaluate({"python_version": python})
            ):
                yield wanted.name


@pytest.mark.skipif(bool(os.environ.get("COMFYUI_PATH")), reason="a ComfyUI of the user's own has other releases")
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_what_is_pinned_is_there_for_every_python_that_the_launcher_takes(python):
    """By what each release says of itself: pip ends the whole environment at one that wants a later Python."""
    names = set(pinned_for(python))
    assert {"torch", "ruff", "pytest"} <= names
    takes = {name: importlib.metadata.metadata(name).get("Requires-Python", "") for name in names}
    assert {name: said for name, said in takes.items() if python not in SpecifierSet(said)} == {}
