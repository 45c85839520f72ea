"""Every text that a node is given, with a value that would lead elsewhere: nothing outside the host's folders is touched."""

import os
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.trainers.runs import keeping
from hosting import inputs_of
from making_data import distil, method_and_lora

HOSTILE = [
    "../../../../evil",
    "..",
    "",
    " ",
    "\0",
    "a\0b",
    "x" * 5000,
    "CON",
    "nul.txt",
    "dot.",
    "space ",
    "a/b",
    "a\\b",
]
NAMES = {
    "FewStepDistill": ["run_name", "start_from"],
    "FewStepWriteRun": ["run_name", "start_from"],
    "FewStepWatchRun": ["run_name", "written"],
    "FewStepLossChart": ["run_name"],
    "FewStepEvaluateDigits": ["run_name"],
    "FewStepSaveStudent": ["name"],
    "FewStepSaveStudentLoRA": ["name"],
    "FewStepMakeItFast": ["run_name", "folder", "references"],
    "FewStepStudentReport": ["runs", "name"],
    "FewStepImageFolder": ["folder", "references"],
    "FewStepClipFolder": ["folder"],
    "FewStepSoundFolder": ["folder"],
}
"""Inputs that name a file or folder."""
OTHERS = {"prompts", "negative", "negative_prompt", "caption", "values", "digits", "teacher_steps", "student_steps"}
"""Inputs whose text is never a path. A new one wants a look at what becomes of it."""
TEXTS = [
    (node, name)
    for node, made in NODE_CLASS_MAPPINGS.items()
    for name, kind in inputs_of(made).items()
    if kind[0] == "STRING"
]


def test_what_becomes_of_every_text_is_known():
    assert {name for _, name in TEXTS} - OTHERS == {name for names in NAMES.values() for name in names}


def test_a_rename_knows_the_widgets_that_name_a_run():
    """By their place in what the editor keeps, and no widget before them brings another."""
    found = {}
    for node, made in NODE_CLASS_MAPPINGS.items():
        inputs = inputs_of(made)
        widgets = [name for name, kind in inputs.items() if _is_widget(kind)]
        if "run_name" in widgets:
            found[node] = widgets.index("run_name")
            assert "seed" not in widgets[: found[node]], "which has a second"
    assert found == keeping.NAMING


def _is_widget(kind):
    words = kind[1] if len(kind) > 1 else {}
    return not words.get("forceInput") and (
        isinstance(kind[0], list) or kind[0] in ("STRING", "INT", "FLOAT", "BOOLEAN")
    )


class Watch:
    """The paths below a folder that this process opens, lists, makes, moves or removes."""

    def __init__(self):
        self.below, self.seen = None, []
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.below and (event in ("open", "shutil.rmtree") or event.startswith("os.")):
            paths = [os.fsdecode(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)]
            absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links would be resolved)
            self.seen += [path for path in absolute if path.startswith(self.below)]


WATCH = Watch()


@pytest.fixture(scope="module")
def sockets(vae, clip):
    """What the nodes' sockets take."""
    method, lora = method_and_lora()
    return {
        "MODEL": tiny("sd15"),
        "VAE": vae,
        "CLIP": clip,
        "FEWSTEP_METHOD": method,
        "FEWSTEP_STUDENT": lora,
        "LATENT": {"samples": noise_for(tiny("sd15"), seed=1, batch=4)},
        "CONDITIONING": conditioning("sd15", seed=2),
    }


def call(node, name, value, sockets):
    """As the host does when links are resolved: a value in one input, sockets connected, the rest at its defaults."""
    made = NODE_CLASS_MAPPINGS[node]
    inputs = {}
    for other, (kind, *rest) in inputs_of(made).items():
        default = (rest[0] if rest else {}).get("default", "good")
        if isinstance(kind, list):
            inputs[other] = default if default in kind else kind[0]
        elif kind in sockets or kind in ("INT", "FLOAT", "BOOLEAN", "STRING"):
            inputs[other] = sockets.get(kind, default)
    inputs |= {name: value} | ({"batch_size": 2} if "batch_size" in inputs else {})
    inputs |= {"do": make_it_fast.PLAN} if "do" in inputs else {}
    if "prompt" in made.INPUT_TYPES().get("hidden", {}):
        inputs |= {"prompt": {"1": {"class_type": node, "inputs": {}}}, "unique_id": "1"}
    with torch.inference_mode():
        return getattr(made(), made.FUNCTION)(**inputs)


@pytest.mark.parametrize(("node", "name"), TEXTS)
def test_no_text_leads_out_of_the_hosts_folders(node, name, tmp_path, monkeypatch, sockets):
    import folder_paths

    monkeypatch.setattr(choosing.Wishes, "planned", lambda wishes, run: (wishes.options, choosing.Wishes))
    monkeypatch.setattr(choosing.Wishes, "told", lambda *_: [])
    base, evil = tmp_path / "a" / "b" / "base", tmp_path / "evil"
    for kind in ("input", "output", "temp"):
        (base / kind).mkdir(parents=True)
        monkeypatch.setattr(folder_paths, f"get_{kind}_directory", lambda kind=kind: str(base / kind))
    for place in (
        evil,
        base / "evil",
        base / "output" / "evil",
        base / "output" / "fewstep" / "evil",
        base.parent / "evil",
    ):
        place.mkdir(parents=True)
        (place / "run.json").write_text('{"run": {}}')
        (place / "student.safetensors").write_bytes(b"secret")
    inside = [
        base / "output" / "fewstep" / "runs",
        base / "output" / "loras",
        base / "output" / "checkpoints",
        base / "input",
    ]
    if "student" in inputs_of(NODE_CLASS_MAPPINGS[node]):
        distil(
            sockets["MODEL"],
            name="good",
            latents=sockets["LATENT"],
            **dict.fromkeys(("positive", "negative"), sockets["CONDITIONING"]),
        )
    before = listed(tmp_path)
    for value in [*HOSTILE, str(evil)]:
        WATCH.seen, WATCH.below = [], str(tmp_path)
        try:
            said = refusal(node, name, value, sockets)
        finally:
            WATCH.below = None
        allowed = [("folder", str(evil)), ("start_from", ""), ("references", ""), ("references", " ")]
        if node == "FewStepMakeItFast":
            allowed += [("folder", ""), ("folder", " ")]  # none, as with prompts
        if name in NAMES.get(node, []) and (name, value) not in allowed:
            assert said, f"{value!r} was taken"
        if (name, value) != ("folder", str(evil)):  # a whole path of a folder of pictures is the user's own choice
            touched = [path for path in WATCH.seen if not any(Path(path).is_relative_to(place) for place in inside)]
            assert touched == [], f"by {value!r}"
        assert {path for path in listed(tmp_path) - before if (base / "output") not in path.parents} == set()


def refusal(node, name, value, sockets):
    """What a node says of a value that it does not take; empty where it takes it."""
    try:
        call(node, name, value, sockets)
    except ValueError as error:
        return str(error)
    except (RuntimeError, AttributeError, KeyError):  # of sockets that are none of the demo's
        return ""
    return ""


def listed(folder):
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("my run 2", True),
        ("\u5b66\u751f", True),
        ("", False),
        ("..", False),
        ("a/b", False),
        ("a ", False),
        ("con", False),
    ],
)
def test_whether_a_run_may_be_called_so_is_an_ordinary_answer(text, allowed, server):
    assert server.get(f"/fewstep/name?{urllib.parse.urlencode({'text': text})}") == {"allowed": allowed}
