"""The pack as ComfyUI's loader finds it: under any folder name, and where optional libraries are missing."""

import subprocess
import sys

from hosting import ROOT

LOAD = """
import importlib.util, logging, sys
sys.path.insert(0, {packages!r})
from comfyui_fewstep.commands.embedded import import_host
import_host()
for name in {missing!r}:
    sys.modules[name] = None
logging.basicConfig(format="LOG %(message)s", level=logging.WARNING, stream=sys.stdout, force=True)
for name in {names!r}:
    spec = importlib.util.spec_from_file_location(name, {init!r})
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    print(name, "NODES", len(module.NODE_CLASS_MAPPINGS), len(module.NODE_DISPLAY_NAME_MAPPINGS), module.WEB_DIRECTORY)
{then}
"""


# Every node has its help page, so the pages count the nodes.
NODES = len(list((ROOT / "web" / "docs").glob("FewStep*.md")))


def load(*names, missing=(), then=""):
    packages = str(ROOT / ".fewstep" / "packages")
    code = LOAD.format(names=names, missing=list(missing), init=str(ROOT / "__init__.py"), packages=packages, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_loads_under_any_folder_name():
    """Under all of them in one process, which also shows that two copies do not disturb each other."""
    names = "ComfyUI-FewStep", "comfyui_fewstep", "My pack (copy)", "few_x_step-main", "/root/custom_nodes/x_x_few"
    said = load(*names).splitlines()
    assert [line for line in said if "NODES" in line] == [f"{name} NODES {NODES} {NODES} ./web" for name in names]


def test_missing_optional_libraries_are_one_clear_line():
    then = """
try:
    module.NODE_CLASS_MAPPINGS["FewStepDigitsData"]().load()
except ImportError as error:
    print("SAID", error)
"""
    said = load("pack", missing=["matplotlib", "sklearn", "kornia"], then=then)
    assert f"NODES {NODES} " in said
    (line,) = [line for line in said.splitlines() if line.startswith("LOG ComfyUI-FewStep")]
    assert "matplotlib (charts), sklearn (the digits data set), kornia (PSNR)" in line
    assert "SAID the digits data set comes with scikit-learn, which is not installed" in said
