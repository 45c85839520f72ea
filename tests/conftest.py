"""Makes the repository importable as the package, whatever its folder is called; leaves out what only --thorough runs."""

import gc
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "comfyui_fewstep" not in sys.modules and importlib.util.find_spec("comfyui_fewstep") is None:
    spec = importlib.util.spec_from_file_location("comfyui_fewstep", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_fewstep"] = module
    spec.loader.exec_module(module)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="also what only costs time for more certainty")


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: only costs time for more certainty; run with --thorough")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--thorough"):
        skipped = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=skipped)
        items[:] = [item for item in items if item not in skipped]


def pytest_collection_finish(session):
    """What is imported by now stays: runs collect garbage at their end, and need not look through all of torch each time."""
    gc.collect()
    gc.freeze()
