#!/usr/bin/env python3
"""ComfyUI-FewStep from a fresh machine: makes an environment in .fewstep, then runs a command in it.

    python launch.py demo    distil a model in a real ComfyUI, in minutes, on any machine
    python launch.py ui      open the editor with the pack
    python launch.py plan    say what a run that the editor wrote will take
    python launch.py train   train it
    python launch.py test    run all tests

Needs Python 3.10 to 3.13 and nothing else. Set COMFYUI_PATH to use your own ComfyUI instead of the embedded one, on the
Python that it runs on (COMFYUI_PYTHON names that where it cannot be found beside it).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".fewstep"
PACKAGE = "comfyui_fewstep"
REQUIREMENTS = ROOT / "requirements"
FOR_HOST = {
    "torch.txt": [],  # first and alone: others ask for any torch, and must find this one
    "embedded.txt": [],
    "embedded-no-deps.txt": ["--no-deps"],
    "comfyui.txt": ["--no-deps", "--require-hashes", "--ignore-requires-python"],  # it says below 3.13, and runs there
}
FOR_TESTS = {"test.txt": [], "test-no-deps.txt": ["--no-deps"]}
"""Files of requirements in the order in which they are installed, with pip's options."""


class Stop(Exception):
    """Ends the command with a message for the user."""


# --- the environment -------------------------------------------------------------------------------------------------


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def own_environment(*, tests: bool = False) -> Path:
    """The Python of the environment in .fewstep/venv: made on first use, and again what of its requirements changed.

    tests: with what only tests and benchmarks need, linters, type checker and browser driver among it.
    """
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise Stop(
            f"this is Python {sys.version.split()[0]}; the embedded ComfyUI needs 3.10 to 3.13. Start launch.py with "
            "one of those, or set COMFYUI_PATH to your own ComfyUI, which may run on a later one."
        )
    environment = HOME / "venv"
    python = python_in(environment)
    wanted = {name: (REQUIREMENTS / name).read_text() for name in [*FOR_HOST, *(FOR_TESTS if tests else {})]}
    stamps = {name: environment / f"installed-{name}" for name in wanted}
    missing = [name for name in wanted if not (python.exists() and _holds(stamps[name], wanted[name]))]
    if missing:
        print(
            f"Making the environment in {environment} (once; it downloads what {', '.join(missing)} list) ...",
            flush=True,
        )
    if not python.exists() and subprocess.run([sys.executable, "-m", "venv", str(environment)]).returncode:
        raise Stop(
            "Python could not make an environment, see above. Debian and Ubuntu: apt install python3-venv. The Python of a "
            "portable ComfyUI makes none: set COMFYUI_PATH to the folder of that ComfyUI."
        )
    for name in missing:
        _install(python, "-r", str(REQUIREMENTS / name), *{**FOR_HOST, **FOR_TESTS}[name])
        stamps[name].write_text(wanted[name])
    return python


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


def _install(python: Path, *arguments: str) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *arguments]).returncode:
        raise Stop(
            "installing failed, see above; start again to go on where it stopped. If the embedded ComfyUI can no longer be "
            "installed, set COMFYUI_PATH to your own."
        )


def comfyui_path() -> Path | None:
    """The user's own ComfyUI, when COMFYUI_PATH names one."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file():
        raise Stop(f"COMFYUI_PATH is {given}, but there is no main.py of ComfyUI in it.")
    return path


def comfyui_python(comfyui: Path) -> Path:
    """The Python that runs the user's ComfyUI: COMFYUI_PYTHON, one beside it, or the one running this."""
    given = os.environ.get("COMFYUI_PYTHON")
    if given:
        if not Path(given).is_file():
            raise Stop(f"COMFYUI_PYTHON is {given}, but there is no such file.")
        return Path(given)
    beside = [python_in(comfyui / name) for name in ("venv", ".venv")]
    beside.append(comfyui.parent / "python_embeded" / "python.exe")
    return next((python for python in beside if python.is_file()), Path(sys.executable))


def environment_python(*, tests: bool = False) -> Path:
    comfyui = comfyui_path()
    return comfyui_python(comfyui) if comfyui else own_environment(tests=tests)


def require_modules(python: Path) -> None:
    """What the tests need must be in the user's Python; nothing is installed into it unasked."""
    code = (
        "import importlib.util as u; print(*[m for m in "
        "('accelerate','diffusers','kornia','matplotlib','mypy','peft','pytest','ruff','setuptools','sklearn','xdist') "
        "if not u.find_spec(m)])"
    )
    missing = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if missing:
        raise Stop(f"{python} lacks {missing}. Install: {python} -m pip install -r {REQUIREMENTS / 'test.txt'}")


# --- links -----------------------------------------------------------------------------------------------------------


def link(target: Path, place: Path) -> None:
    """A folder link, or a junction on Windows, where links need rights that junctions do not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and place.resolve() == target:
        return
    if place.is_symlink():
        place.unlink()
    elif os.path.lexists(place):
        place.rmdir()  # a junction, to where this was before it was moved
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(place))  # type: ignore[attr-defined, unused-ignore]
    else:
        place.symlink_to(target, target_is_directory=True)


MODULE = "module"
"""The first word of a start of this file that runs a module of the package in the process that it finds itself in."""


def module(name: str) -> list[str]:
    """What Python is given to run a module of the package: not -m, for which the Python of ComfyUI's portable build for Windows
    looks in the folders of its own ._pth file alone, and in no PYTHONPATH."""
    return [str(ROOT / "launch.py"), MODULE, f"{PACKAGE}.{name}"]


def run_module(name: str, *arguments: str) -> None:
    """As python -m does, with this folder as the package: no link to it is needed, which some disks know none of."""
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py")
    package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(package)  # type: ignore[union-attr]
    sys.argv = [name, *arguments]
    if sys.flags.ignore_environment:  # also of what run_in_environment says of the terminal
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr, unused-ignore]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _require_link() -> None:
    """Stop where this folder cannot be written to: in a container's image, say, or when somebody else installed the pack."""
    try:
        link(ROOT, HOME / "packages" / PACKAGE)
    except OSError as error:
        raise Stop(
            f"nothing can be written to {HOME} ({error.strerror}), where launch.py keeps what it makes. Copy {ROOT} to a folder "
            "of your own and start the copy's launch.py with the same options."
        ) from error


def run_in_environment(python: Path, *arguments: str, alone: bool = False) -> int:
    """Runs Python with this repository importable as the package, whatever its folder is called; what ends this ends it.

    alone: a `module` that starts no other process which imports it; the pack's folder may then be one that is only read."""
    if not alone:
        _require_link()
    paths = [str(HOME / "packages"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MYPYPATH": paths[0]}
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    environment["PYTHONIOENCODING"] = f"{encoding}:{errors or 'replace'}"  # a name that it cannot print ends nothing
    if comfyui := comfyui_path():
        environment["COMFYUI_PATH"] = str(comfyui)
    process = subprocess.Popen([str(python), *arguments], cwd=ROOT, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # which, unlike Ctrl-C, comes to this process alone
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code  # of one that a signal ended, as shells say it
        except KeyboardInterrupt:
            pass  # the command got the same signal; it stops cleanly and says so


# --- commands --------------------------------------------------------------------------------------------------------


EXPLAINED_BY_ANY = ("commands.demo", "commands.ui", "benchmarks")
"""Modules whose own --help asks for nothing beyond the standard library."""


def command_module(name: str, rest: list[str]) -> int:
    explained = name in EXPLAINED_BY_ANY and rest in (["-h"], ["--help"])
    python = Path(sys.executable) if explained else environment_python(tests=name == "benchmarks")
    return run_in_environment(python, *module(name), *rest)


def on_all_cores() -> list[str]:
    """Options for pytest: files side by side, each with its share of the cores. At most four, for each starts a ComfyUI.

    In the order of the folders, browser and host first: the short files of tests/unit fill up what is left at the end.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, 4)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))
    return ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]


def command_test(rest: list[str]) -> int:
    """ruff, mypy, then pytest; each says its own piece, and all run before the result. --thorough alone is a whole run too."""
    whole = not set(rest) - {"--thorough"}
    python = environment_python(tests=True)
    require_modules(python)
    steps = {
        "ruff check": ["-m", "ruff", "check", "."],
        "ruff format": ["-m", "ruff", "format", "--check", "."],
        "mypy": ["-m", "mypy", "-p", PACKAGE, "--cache-dir", str(HOME / "mypy")],
    }
    failed = []
    if whole:
        for name, arguments in steps.items():
            print(f"== {name}", flush=True)
            if run_in_environment(python, *arguments):
                failed.append(name)
    print("== pytest", flush=True)
    chosen = [] if any(Path(option.split("::")[0]).exists() for option in rest) else ["tests"]
    shared = on_all_cores() if whole else []
    code = run_in_environment(python, "-m", "pytest", "-c", "tests/pytest.ini", *shared, *chosen, *rest)
    if failed:
        print(f"failed before pytest: {', '.join(failed)}")
    return code or bool(failed)


def command_train(rest: list[str]) -> int:
    """Executes a run folder; the module says what it does. Several processes go through torch's own launcher."""
    parser = argparse.ArgumentParser(prog="launch.py train", description="Trains a run folder that Write Run made.")
    _of_a_run(parser)
    parser.add_argument("--processes", type=int, default=1, help="one for each GPU of this machine (default: 1)")
    arguments = parsed_with_host_options(parser, rest)
    most = max(os.cpu_count() or 1, 8)  # no machine has more GPUs than cores; torch's launcher starts any number
    if not 1 <= arguments.processes <= most:
        raise Stop(f"--processes is {arguments.processes}; give 1 to {most}, one for each GPU of this machine.")
    if arguments.processes > 1 and sys.platform == "win32":
        # as of torch 2.14, https://github.com/pytorch/pytorch/pull/196855
        raise Stop(
            f"--processes is {arguments.processes}; on Windows give 1: torch's launcher of several wants libuv, which its "
            "builds for Windows lack. Those for Linux, and so under WSL, have it."
        )
    if arguments.comfyui:
        os.environ["COMFYUI_PATH"] = str(arguments.comfyui)
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
    start = [*(many if arguments.processes > 1 else []), *module("trainers")]
    return run_in_environment(environment_python(), *start, *_of_run(arguments), alone=True)


def command_plan(rest: list[str]) -> int:
    """Tries a run folder; the module says what it does."""
    parser = argparse.ArgumentParser(prog="launch.py plan", description="Says what a run of Write Run takes.")
    _of_a_run(parser)
    arguments = parsed_with_host_options(parser, rest)
    if arguments.comfyui:
        os.environ["COMFYUI_PATH"] = str(arguments.comfyui)
    return run_in_environment(environment_python(), *module("commands.plan"), *_of_run(arguments), alone=True)


def _of_a_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run's folder: ComfyUI/output/fewstep/runs/<run name>")
    parser.add_argument("--comfyui", type=Path, help="your ComfyUI (default: COMFYUI_PATH, else the embedded one)")
    parser.add_argument(
        "--base", type=Path, help="folder with models/ and custom_nodes/ (default: the run's own ComfyUI)"
    )


def _of_run(arguments: argparse.Namespace) -> list[str]:
    base = ["--base", str(Path.cwd() / arguments.base)] if arguments.base else []
    host = ["--", *arguments.host_options] if arguments.host_options else []
    return [str(Path.cwd() / arguments.run), *base, *host]


def parsed_with_host_options(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    """With host_options: what follows --. argparse alone does not find it where an option of ours stands before it."""
    parser.epilog = "what follows -- are options of ComfyUI, as its own main.py takes them"
    at = given.index("--") if "--" in given else len(given)
    return argparse.Namespace(**vars(parser.parse_args(given[:at])), host_options=given[at + 1 :])


USERS_OWN = ("models", "input", "output", "user")
"""Folders of the embedded ComfyUI that hold what its user made or put there: models, pictures, runs, students, workflows."""


def command_clean(rest: list[str]) -> int:
    """Removes .fewstep, links before what they point to, but of what cannot be made again only what is asked for."""
    own = [HOME / "host" / name for name in USERS_OWN]
    parser = argparse.ArgumentParser(
        prog="launch.py clean",
        description="Removes the environment and everything else in .fewstep, which launch.py makes anew when it is needed.",
    )
    names = ", ".join(f"{name}/" for name in USERS_OWN)
    parser.add_argument(
        "--all", action="store_true", help=f"{names} of its ComfyUI too: models, pictures, runs, students"
    )
    everything = parser.parse_args(rest).all
    for place in (HOME / "packages" / PACKAGE, HOME / "host" / "custom_nodes" / PACKAGE):
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            place.rmdir()
    kept = [] if everything else [folder for folder in own if _holds_files(folder)]
    host = HOME / "host"
    beside = [HOME]
    if kept:
        beside = [path for path in (*HOME.iterdir(), *host.iterdir()) if path not in (host, *kept)]
    for path in beside:
        _remove(path)
    for folder in kept:
        print(f"kept: {folder}; --all removes it too")
    if left := [path for path in beside if os.path.lexists(path)]:
        raise Stop(f"could not be removed as a whole: {', '.join(map(str, left))}")
    return 0


def _holds_files(folder: Path) -> bool:
    """Its own, no folder of links alone."""
    return any(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


COMMANDS = {
    "demo": ("distil the digits teacher from 64 to 4 steps in a real ComfyUI and show what it bought", "commands.demo"),
    "ui": ("start the editor with the pack and print its address", "commands.ui"),
    "plan": ("say how long a run that Write Run made will train here, and in how much memory", None),
    "train": ("train a run folder that the node Write Run made, on one GPU or several", None),
    "test": ("lint, type check and all tests (--thorough: every one); what follows goes to pytest", None),
    "bench": ("measure the figures of the README (bench --help lists the benchmarks)", "benchmarks"),
    "train-demo-teacher": ("train the demo teacher that the pack ships", "commands.train_demo teacher"),
    "train-demo-classifier": ("train the digits classifier that the pack ships", "commands.train_demo classifier"),
    "locales": ("write locales/en anew from what the nodes declare", "commands.locales"),
    "clean": ("remove the environment and all else in .fewstep that can be made again", None),
}


def main() -> int:
    listing = "\n".join(f"  {name:24}{about}" for name, (about, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"commands:\n{listing}\n\n`python launch.py COMMAND --help` explains a command's own options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the command")
    arguments = parser.parse_args()
    module = COMMANDS[arguments.command][1]
    try:
        if module:
            name, *fixed = module.split()
            return command_module(name, [*fixed, *arguments.options])
        own = {"train": command_train, "plan": command_plan, "test": command_test, "clean": command_clean}
        return own[arguments.command](arguments.options)
    except Stop as stop:
        print(f"launch.py: {stop}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if sys.argv[1:2] == [MODULE]:
        run_module(*sys.argv[2:])
    else:
        sys.exit(main())
