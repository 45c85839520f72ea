"""run.json as another process reads it: whatever stands in an entry, it is taken as it is meant, or refused by its name."""

import copy
import json

import pytest
from comfyui_fewstep.trainers.methods import METHODS, read_method
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import LoRAOptions
from comfyui_fewstep.trainers.training.distillation import Recorded
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from test_run import distillation

LEARNT = {"iterations": 5, "learning_rate": 1e-3}
OPTIONS = {
    "progressive_distillation": {"start_steps": 8, "target_steps": 4, "weighting": "constant", "guidance_scale": 1.0},
    "guidance_distillation": {"guidance_scale": 2.0},
    "consistency_distillation": {"steps": 4, "guidance_scale": 1.0},
    "consistency_training": {"steps": 4},
    "distribution_matching": {"steps": 4, "guidance_scale": 1.0},
}
STUDENT = {"kind": "lora", "rank": 4, "alpha": 4.0, "layers": "linear"}
TEACHER_IS = {
    **dict.fromkeys(("weights", "patches", "beside"), "ab"),
    "levels": [0.1, 1.0],
    "changes": {"attn1 patches": ["nodes.One"]},
    "answers": {"float32 on cpu": [{"sigma": 1.0, "numbers": [0.5, None]}]},
}
TEACHER = {"nodes": {"1": {"class_type": "One", "inputs": {"from": ["2", 0]}}}, "outputs": {"model": ["1", 0]}}


def described(root, method):
    """run.json of a run of that method, with all that such a file can hold."""
    found = distillation(root).description() | {"teacher_is": TEACHER_IS, "teacher": TEACHER}
    options = METHODS[method].read(LEARNT | OPTIONS[method]).written()
    kept = {name: value for name, value in found["run"].items() if not name.startswith(("method", "student"))}
    named = {f"method.{name}": value for name, value in options.items()}
    student = {f"student.{name}": value for name, value in STUDENT.items()}
    return json.loads(json.dumps(found | {"run": {**kept, "method": method, **named, **student}}))


def read(root, description):
    """All that is made of run.json before anything else is looked at."""
    folder = root / "run"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(description))
    recorded = Recorded.of(RunFolder(root, "run"))
    return recorded, read_method(recorded.method, recorded.method_options), LoRAOptions.read(recorded.student)


def places(value, path=()):
    """Of every value in it, outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(description, path, value):
    found = copy.deepcopy(description)
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


@pytest.mark.parametrize("method", METHODS)
def test_it_is_read_as_it_was_meant(method, tmp_path):
    recorded, options, student = read(tmp_path, described(tmp_path, method))
    assert options == METHODS[method].read(LEARNT | OPTIONS[method])
    assert student == LoRAOptions(rank=4, alpha=4.0)
    assert recorded.options == TrainOptions(batch_size=8, log_every=5, checkpoint_every=7, seed=4)


WRONG = [[[]], {"a": 1}, None, float("nan"), "no such"]


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_kind_is_refused_by_name(method, tmp_path):
    description = described(tmp_path, method)
    options = [name for name in description["run"] if name.partition(".")[0] in ("method", "training", "student")]
    for name in set(options) - {"method", "student.kind"}:  # the latter is the host's
        for value in WRONG:
            said = (
                "" if name.startswith("student") else r"run\.json of the run 'run' is damaged.*"
            )  # the host's names that
            with pytest.raises(ValueError, match=f"{said}{name.partition('.')[2]} is "):
                read(tmp_path, changed(description, ("run", name), value))


def test_nothing_that_it_may_hold_is_an_error_of_ours(tmp_path):
    description = described(tmp_path, "progressive_distillation")
    for path in places(description):
        for value in WRONG:
            try:
                read(tmp_path, changed(description, path, value))
            except ValueError as refused:
                assert str(refused)


@pytest.mark.parametrize("entry", ["free", "teacher"])
@pytest.mark.parametrize("value", [7, [], "x"])
def test_what_is_no_object_is_named(entry, value, tmp_path):
    """In no words of Python's."""
    description = described(tmp_path, "progressive_distillation")
    for found, said in ((changed(description, (entry,), value), "is "), (dict(description), "is missing")):
        if said == "is missing":
            found.pop(entry)
        with pytest.raises(ValueError, match=rf"run\.json of the run 'run' is damaged.*{entry}.* (is|not)") as refused:
            read(tmp_path, found)
        assert "mapping" not in str(refused.value)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_missing_or_not_known_is_named(method, tmp_path):
    description = described(tmp_path, method)
    for name in LEARNT | OPTIONS[method]:
        run = {key: value for key, value in description["run"].items() if key != f"method.{name}"}
        with pytest.raises(ValueError, match=f"{name} is missing"):
            read(tmp_path, description | {"run": run})
    for name in ("method.later", "training.later", "student.later"):
        with pytest.raises(ValueError, match="later is no option that this version knows"):
            read(tmp_path, changed(description, ("run", name), 1))
