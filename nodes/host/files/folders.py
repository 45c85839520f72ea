"""Where the host keeps files: its model folders, and ours below its output folder."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ....trainers.data.encodings import Encodings
from ....trainers.runs.watching import all_students, students_of
from ....trainers.storage import places
from ....trainers.storage.export import is_one_of
from ....trainers.storage.files import copy_atomically, file_sha256, require_whole
from ....trainers.storage.kept_hashes import kept
from ....trainers.storage.run_folder import RunFolder
from ..editor import signals
from ..sampling.guidance import is_cond_proj
from ..sampling.models import log

_LAUNCHER = Path(__file__).resolve().parents[3] / "launch.py"
_DEMO = "FewStepDemoTeacher"
_REMEMBERED = ("filename_list_cache", "_filename_list_cache")
"""What hosts listed, by kind; the second in the host of mid-2024."""
_MODEL_FOLDERS = ("checkpoints", "unet", "diffusion_models")
_PRECISION = (
    *("--force-fp32", "--force-fp16", "--force-bf16", "--supports-fp8-compute"),
    *("--fp32-unet", "--fp64-unet", "--bf16-unet", "--fp16-unet"),
    *("--fp8_e4m3fn-unet", "--fp8_e5m2-unet", "--fp8_e8m0fnu-unet"),
    *("--fp16-vae", "--fp32-vae", "--bf16-vae", "--cpu-vae"),
    *("--force-upcast-attention", "--dont-upcast-attention"),
)
"""Options of ComfyUI by which it holds a model's weights, or computes, in another type."""


def _folders() -> list[str]:
    return [name for name in _MODEL_FOLDERS if name in folder_paths.folder_names_and_paths]


def listed(folder: str) -> list[str]:
    """The host's list of a kind's files.

    The host remembers the folders and fails, until it is restarted, where one is gone: output/loras and its like, as soon as
    somebody empties the output folder. What is forgotten here every loader lists anew.
    """
    try:
        return list(folder_paths.get_filename_list(folder))
    except FileNotFoundError:
        remembered = next(getattr(folder_paths, name) for name in _REMEMBERED if hasattr(folder_paths, name))
        remembered.pop(folder, None)
        return list(folder_paths.get_filename_list(folder))


def model_files() -> list[str]:
    """The safetensors files in the host's model folders, for a combo."""
    names = {name for folder in _folders() for name in listed(folder)}
    return sorted(name for name in names if name.endswith(".safetensors"))


def lora_files() -> list[str]:
    """The host's LoRAs, for a combo."""
    return listed("loras")


def lora_file(name: str) -> Path:
    """Where one of `lora_files` lies. ValueError for any other name."""
    path = folder_paths.get_full_path("loras", name) if name in lora_files() else None
    if path is None:
        raise ValueError(f"there is no LoRA {name!r} in the folders for LoRAs.")
    return Path(path)


def guidance_embedding_of(file: str) -> Tensor:
    """cond_proj of a model file. ValueError, naming the file, when it holds none."""
    paths = [folder_paths.get_full_path(folder, file) for folder in _folders()]
    path = next((path for path in paths if path), None)
    if path is None:
        raise ValueError(f"there is no file {file!r} in the folders {', '.join(_folders())}.")
    found = _cond_proj_in(path)
    if found is None:
        raise ValueError(
            f"{file} holds no guidance embedding (cond_proj): it is no full LCM checkpoint. An LCM-LoRA needs none; sample it "
            "at cfg 1 to 2."
        )
    return found


def guidance_embedding(name: str) -> Tensor | None:
    """cond_proj of one of `recipe_files` whose network takes its guidance scale as an input."""
    path = recipe_file(name)
    return None if path is None else _cond_proj_in(path)


def _cond_proj_in(path: str | Path) -> Tensor | None:
    with safe_open(path, framework="pt") as content:
        name = next(filter(is_cond_proj, content.keys()), None)
        return None if name is None else content.get_tensor(name)


_QUOTES = ('"', "'")


def training_folder(text: str) -> Path:
    """A folder that the user names: an absolute path is theirs to choose, a relative one lies in the host's input folder.

    Quotes around it are none of its name: Windows puts them there as it copies a path, terminals as one is dragged into them.
    ValueError for a relative one that leads out of it.
    """
    given = text.strip()
    if given[:1] in _QUOTES and given.endswith(given[0]):
        given = given[1:-1].strip()
    if not given:
        raise ValueError("the folder of training data is empty; give the path of a folder.")
    root, path = Path(folder_paths.get_input_directory()), _at_home(given)
    if not path.is_absolute() and ".." in path.parts:
        raise ValueError(
            f"the folder of training data is {text!r}; a relative path lies in ComfyUI's input folder ({root}), and .. "
            "would lead out of it. Give the whole path of a folder elsewhere."
        )
    return root / path


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"the folder of training data is {text!r}, but {error}") from error


def runs_root() -> Path:
    """Where run folders live: below the host's output folder, as it is set when this is called."""
    return Path(folder_paths.get_output_directory()) / "fewstep" / "runs"


def encodings() -> Encodings:
    """What VAEs and text encoders made of training data: output/fewstep/encoded, which may be deleted at any time."""
    return Encodings(runs_root().parent / "encoded")


def known_weights() -> Path:
    """Which weights have which hash, by their files. ValueError where somebody put a link there."""
    return places.place(runs_root().parent, "known_weights.json")


def run_named(name: str) -> RunFolder:
    """The run of that name, there or not. ValueError for names that could lead elsewhere."""
    return RunFolder(runs_root(), name)


def error_of_name(name: Any, *, what: str) -> bool | str:
    """Of an input that names a file or folder of ours, for VALIDATE_INPUTS; a linked one is None there, not known yet."""
    return True if name is None else signals.error_of(lambda: places.require_name(name, what=what))


def command_for(run: Path) -> str:
    """What trains a run folder from a terminal, with this very Python and, where it is no embedded one, this ComfyUI.

    For this system's shell, whatever is in the paths. With the folders of the models where those are not the run's own
    ComfyUI's, and with the files of further such folders and the options of precision that this ComfyUI was started with.
    """
    host = Path(folder_paths.__file__).parent
    base, models = map(Path, (folder_paths.base_path, folder_paths.models_dir))
    words = [sys.executable, _LAUNCHER, "train", run]
    words += ["--comfyui", host] if (host / "nodes.py").is_file() else []
    words += ["--base", base] if run.parents[2] != base / "output" else []
    config = [Path(file).absolute() for files in args.extra_model_paths_config or [] for file in files]
    host_options = ["--models-directory", models] if models != base / "models" else []
    host_options += ["--extra-model-paths-config", *config] if config else []
    host_options += _options_of_precision()
    words += ["--", *host_options] if host_options else []
    return in_shell([str(word) for word in words], windows=os.name == "nt")


def _options_of_precision() -> list[str]:
    """Without them a teacher has other weights, and is refused as another; --fast with what it names."""
    given = [option for option in _PRECISION if getattr(args, option[2:].replace("-", "_"), False)]
    if "--force-fp16" in given:  # which hosts of today take for the other too, and refuse that beside one more
        given = [option for option in given if option != "--fp16-unet"]
    fast = getattr(args, "fast", None)  # one option in hosts of 2024, then a set of the host's own words
    named = sorted(one.value for one in fast) if isinstance(fast, set) else []
    return given + (["--fast", *named] if fast else [])


def in_shell(words: list[str], *, windows: bool) -> str:
    """One line of cmd.exe or of a POSIX shell that means these words."""
    return " ".join(map(_in_cmd, words)) if windows else shlex.join(words)


def _in_cmd(word: str) -> str:
    """What list2cmdline leaves bare is cut by cmd.exe at its own marks, which stand in folders' names."""
    said = subprocess.list2cmdline([word])
    if said.startswith('"') or not any(mark in said for mark in "&|<>^();,="):
        return said
    ending = len(said) - len(said.rstrip("\\"))  # which would make the quote after it one of the word's
    return f'"{said}{said[len(said) - ending :]}"'


def students_root() -> Path:
    """Where a user puts students that came from elsewhere."""
    return Path(folder_paths.models_dir) / "fewstep_students"


def clip_score_folder() -> Path:
    """Where a user puts the CLIP that scores pictures, as transformers saves it."""
    return Path(folder_paths.models_dir) / "fewstep_clip_score"


def student_files() -> dict[str, Path]:
    """Name to file, of every finished run, every finished stage and every file that the user put into models/fewstep_students."""
    files: dict[str, Path] = {}
    for run, own in all_students(runs_root()).items():
        files |= {f"{run.name}{_stage_of(file, run)} (run)": file for file in own}
    return files | {path.name: path for path in students_root().glob("*.safetensors") if path.is_file()}


def _stage_of(student: Path, run: RunFolder) -> str:
    """As menus of students have it; of the run's result none."""
    return "" if student.parent == run.path else f", {student.stem}"


def recipe_files() -> list[str]:
    """Names of everything whose metadata may hold a recipe: LoRAs, models and students, for a combo; no file is looked at."""
    names = [f"{folder}/{name}" for folder in _recipe_folders() for name in listed(folder)]
    return [name for name in names if name.endswith(".safetensors")] + list(student_files())


def recipe_file(name: str) -> Path | None:
    """Where one of `recipe_files` lies."""
    folder, _, file = name.partition("/")
    if folder not in _recipe_folders():
        return student_files().get(name)
    path = folder_paths.get_full_path(folder, file)
    return Path(path) if path else None


def model_file(name: str) -> Path | None:
    """Where a file lies that a loader names without its folder; None for one that none of the host's model folders has."""
    paths = (folder_paths.get_full_path(folder, name) for folder in _recipe_folders())
    return next((Path(path) for path in paths if path), None)


def sha256_of(path: Path) -> str:
    """Of a whole file, kept until it changes."""
    told = path.stat()
    key = json.dumps(["file", str(path), told.st_size, told.st_mtime_ns])
    return kept(known_weights(), key, lambda: file_sha256(path))


def _recipe_folders() -> list[str]:
    return ["loras", *_folders()]


def _own(folder: str) -> Path:
    return Path(folder_paths.get_output_directory()) / folder


def list_own_models() -> None:
    """Has the host's loaders list output/loras and its like, as current hosts do by themselves and those of mid-2024 do not."""
    for folder in ("loras", "checkpoints"):
        folder_paths.add_model_folder_path(folder, str(_own(folder)))
    models = next(name for name in ("diffusion_models", "unet") if name in folder_paths.folder_names_and_paths)
    folder_paths.add_model_folder_path(models, str(_own("diffusion_models")))


def _model_file(folder: str, name: str) -> Path:
    """output/<folder>/fewstep/<name>.safetensors. ValueError for a name that could lead elsewhere."""
    return _own(folder) / "fewstep" / f"{places.require_name(name, what='name of the file')}.safetensors"


def publish(run: RunFolder, *, folder: str) -> Path:
    """Puts a finished student where the host's loaders list it: output/<folder>/fewstep/<run name>.safetensors.

    folder: loras or diffusion_models. A file there that is none of this run's students is somebody else's and stays as it
    is: the student then gets the first free name, "<run name> 2" and so on. So does one of this run's that is loaded, where that
    keeps it from being replaced, as on Windows. A copy, which whoever writes to it writes to alone.
    ValueError, saying what to delete, for a student that is damaged.
    """
    first = _model_file(folder, run.name)
    others = (first.with_name(f"{run.name} {number}.safetensors") for number in itertools.count(2))
    target = next(file for file in itertools.chain([first], others) if _holds(file, run) or _put(run, file))
    if target != first:
        log.warning(
            "%s in %s %s and stays; its student is %s.",
            first.name,
            first.parent,
            "is in use" if is_one_of(first, run.students()) else "is not of this run",
            target.name,
        )
    list_own_models()  # the host remembers what it listed
    return target


def _holds(file: Path, run: RunFolder) -> bool:
    """The run's result."""
    return is_one_of(file, [run.student_file])


def _put(run: RunFolder, target: Path) -> bool:
    """The student there, if nothing is, or another of this run's that may be replaced."""
    there = os.path.lexists(target)
    if there and not is_one_of(target, run.students()):
        return False
    _require_whole(run)
    try:
        copy_atomically(run.student_file, target, one_file=False, new=not there, heed=signals.check_cancelled)
    except FileExistsError:  # meanwhile, by who trained the run or watches it, or somebody else's
        return _holds(target, run)
    except PermissionError:
        if not there:
            raise
        return False
    return True


def _require_whole(run: RunFolder) -> None:
    try:
        require_whole(run.student_file, heed=signals.check_cancelled)
    except ValueError as error:
        raise ValueError(
            f"the student of the run {run.name!r} is not put among the models: {error} Delete {run.student_file} and start the "
            "run once more, which writes it anew."
        ) from error


def is_of_demo(run: RunFolder) -> bool:
    """Whether its teacher is the demo's, by its node; not of a run that is damaged there, of which `summary` says why."""
    try:
        nodes = (run.description().get("teacher") or {"nodes": {}})["nodes"].values()
    except (ValueError, OSError):
        return False
    return any(node["class_type"] == _DEMO for node in nodes)


def listed_in_vain(run: RunFolder) -> list[Path]:
    """What was published of a student of full weights that no loader of the host reads: of the demo's teacher."""
    if not is_of_demo(run):
        return []
    files = (_own("diffusion_models") / "fewstep").glob("*.safetensors")
    return [file for file in files if is_one_of(file, students_of(run))]


def new_model(name: str, *, folder: str) -> Path:
    """Where a model file of ours goes: output/<folder>/fewstep/<name>.safetensors. ValueError where there is one already.

    folder: checkpoints or loras. ValueError too for a name that could lead elsewhere.
    """
    file = _model_file(folder, name)
    if os.path.lexists(file):
        raise ValueError(f"there is a file {name!r} in {folder} already ({file}); choose another name.")
    return file


def keep_for_view(picture: Tensor) -> dict[str, str]:
    """Writes a picture (H, W, 3) in [0, 1] to the host's temporary folder. Returns the query of its route /view."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"fewstep_{uuid.uuid4().hex}.png"
    Image.fromarray(picture.clamp(0.0, 1.0).mul(255).byte().numpy()).save(folder / name, compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}
