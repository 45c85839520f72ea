"""A finished student among the host's own models: it never takes the place of a file that is not its run's."""

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import folder_paths
from comfyui_fewstep.nodes.distillation import runs, telling
from comfyui_fewstep.nodes.distillation.learning import saving, students
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.trainers.storage.files import read_tensors, write_tensors
from making_data import distil
from safetensors.torch import save_file

from architectures import conditioning, noise_for, tiny  # isort: skip


@pytest.fixture
def model():
    return tiny("sd15")


@pytest.fixture
def told(monkeypatch):
    """What the browser hears."""
    heard = []
    monkeypatch.setattr(telling.MESSAGES, "_send", lambda event, message: heard.append(message))
    return heard


def train(model, name, seed=1):
    data = {"latents": {"samples": noise_for(model, seed=seed, batch=4)}}
    data |= dict.fromkeys(("positive", "negative"), conditioning("sd15", seed=2))
    return distil(model, name=name, **data)


def student(output, name):
    return read_tensors(output / "fewstep" / "runs" / name / "student.safetensors")[0]


def same(file, tensors):
    found, _ = read_tensors(file)
    return found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_an_output_folder_that_was_emptied_takes_no_list_with_it(output):
    """The host remembers output/loras, asks when it was changed, and failed in every list of LoRAs until it was restarted."""
    (output / "loras" / "fewstep").mkdir(parents=True)
    (output / "diffusion_models").mkdir()
    folders.list_own_models()
    own = output / "loras" / "fewstep" / "mine.safetensors", output / "diffusion_models" / "whole.safetensors"
    for file in own:
        save_file({"it": torch.ones(1)}, file)
    assert str(Path("fewstep", "mine.safetensors")) in folders.lora_files()
    assert "whole.safetensors" in folders.model_files()
    shutil.rmtree(output / "loras")
    shutil.rmtree(output / "diffusion_models")
    with pytest.raises(FileNotFoundError):
        folder_paths.get_filename_list("loras")
    assert not {"mine.safetensors", "whole.safetensors"} & {Path(name).name for name in folders.recipe_files()}
    assert folders.lora_files() == folder_paths.get_filename_list("loras"), "the host's own loaders list again, too"


def test_a_users_file_of_that_name_stays_and_the_student_lies_beside_it(model, output, told, caplog):
    published = output / "loras" / "fewstep"
    published.mkdir(parents=True)
    save_file({"users": torch.ones(3)}, published / "run.safetensors")
    before = (published / "run.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING):
        train(model, "run")
    assert (published / "run.safetensors").read_bytes() == before
    assert same(published / "run 2.safetensors", student(output, "run"))
    ended = {"run": "run", "node": None, "state": "finished", "published": "fewstep/run 2.safetensors"}
    assert told[-1] == ended | {"start_left": 0.0}
    assert "is not of this run and stays; its student is run 2.safetensors" in caplog.text
    train(model, "run")
    assert {file.name for file in published.iterdir()} == {"run.safetensors", "run 2.safetensors"}, (
        "loaded, not multiplied"
    )
    assert told[-1]["published"] == "fewstep/run 2.safetensors"


def test_what_save_student_wrote_stays(model, output, told):
    train(model, "first")
    with torch.inference_mode():
        saving.SaveStudentLoRA().save(model, "first (run)", 8, "second")
    saved = output / "loras" / "fewstep" / "second.safetensors"
    before = saved.read_bytes()
    train(model, "second", seed=2)
    assert saved.read_bytes() == before
    assert same(saved.with_name("second 2.safetensors"), student(output, "second"))


@pytest.mark.parametrize("whose", ["the run's", "somebody's"])
def test_what_comes_while_a_student_is_put_among_the_models_stays(whose, model, output, told, monkeypatch):
    """From who watched the training, or from another server that saved under the name: minutes, of a large model."""
    train(model, "run")
    run, came = folders.run_named("run"), output / "loras" / "fewstep" / "run.safetensors"
    came.unlink()
    content = {"the run's": run.student_file.read_bytes(), "somebody's": b"somebody's"}[whose]
    monkeypatch.setattr(folders.signals, "check_cancelled", lambda: came.exists() or came.write_bytes(content))
    monkeypatch.setattr(folders, "_require_whole", lambda _: None)
    file = folders.publish(run, folder="loras")
    assert came.read_bytes() == content
    assert same(file, student(output, "run"))
    assert set(file.parent.iterdir()) == {came, file}
    assert (file == came) is (whose == "the run's")


@pytest.mark.parametrize("saves", ["checkpoint", "LoRA"])
def test_what_comes_while_a_student_is_saved_stays(saves, output, monkeypatch):
    """Two servers that save under one name: each has looked whether it is free, and then merges for minutes."""
    model = tiny("sd15")
    train(model, "run")
    given = (8, "new") if saves == "LoRA" else ("new",)
    kind, folder = {
        "LoRA": (saving.SaveStudentLoRA, "loras"),
        "checkpoint": (saving.SaveStudentCheckpoint, "checkpoints"),
    }[saves]
    came, loaded = output / folder / "fewstep" / "new.safetensors", saving.loaded

    def meanwhile(*how, **more):
        write_tensors(came, {}, metadata={"whose": "another's"})
        return loaded(*how, **more)

    monkeypatch.setattr(saving, "loaded", meanwhile)
    monkeypatch.setattr(saving.host.checkpoints.comfy.sd, "save_checkpoint", lambda path, *_, **__: Path(path).touch())
    encoders = () if saves == "LoRA" else (None, None)
    with (
        torch.inference_mode(),
        pytest.raises(FileExistsError, match=r"new\.safetensors could not .* choose another name"),
    ):
        kind().save(model, *encoders, "run (run)", *given)
    assert read_tensors(came)[1]["whose"] == "another's"


def test_a_deleted_runs_file_stays(model, output, told):
    """Another run of the same name is another run."""
    train(model, "run")
    first = student(output, "run")
    folders.run_named("run").delete()
    train(model, "run", seed=2)
    published = output / "loras" / "fewstep"
    assert same(published / "run.safetensors", first)
    assert same(published / "run 2.safetensors", student(output, "run"))
    assert not same(published / "run.safetensors", student(output, "run"))


def test_further_stages_take_the_place_of_the_runs_own_file(model, output, told):
    """Also where the disk knows no second names for one file."""
    train(model, "run")
    file = output / "loras" / "fewstep" / "run.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    run = folders.run_named("run")
    stages = sorted(run.files("stages", ".safetensors"))
    run.student_file.unlink()
    run.student_file.write_bytes(stages[0].read_bytes())  # as if this stage were the last
    assert folders.publish(run, folder="loras") == file
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]
    assert "published" not in told[-1]


def test_a_file_that_is_in_use_stays_where_windows_will_not_replace_it(model, output, told, monkeypatch, caplog):
    """Whoever has loaded it reads it on: the student of further stages lies beside it, and is there the next time."""
    train(model, "run")
    file = output / "loras" / "fewstep" / "run.safetensors"
    replace, run = Path.replace, folders.run_named("run")
    tensors, metadata = read_tensors(run.student_file)
    write_tensors(run.student_file, {name: value + 1.0 for name, value in tensors.items()}, metadata=metadata)

    def refused(self, target):
        if Path(target) == file:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    for _ in range(2):
        assert folders.publish(run, folder="loras") == file.with_name("run 2.safetensors")
        assert same(file.with_name("run 2.safetensors"), student(output, "run"))
    assert len(list(file.parent.iterdir())) == 2
    assert "run.safetensors in" in caplog.text
    assert "is in use and stays; its student is run 2.safetensors" in caplog.text
    monkeypatch.setattr(Path, "replace", replace)
    assert folders.publish(run, folder="loras").name == "run.safetensors"


def test_what_is_published_is_no_file_of_the_run(model, output, told):
    """A copy in the place of what was published, by a program that keeps the file, leaves the run its student."""
    train(model, "run")
    mine = student(output, "run")
    published = output / "loras" / "fewstep" / "run.safetensors"
    save_file({"users": torch.ones(3)}, output / "other.safetensors")
    published.write_bytes((output / "other.safetensors").read_bytes())
    assert same(folders.run_named("run").student_file, mine)
    train(model, "run")
    assert same(published.with_name("run 2.safetensors"), mine)


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_student_is_not_published_and_is_written_again_as_is_said(harm, model, output, told):
    train(model, "run")
    mine, run = student(output, "run"), folders.run_named("run")
    published = output / "loras" / "fewstep" / "run.safetensors"
    published.unlink()
    content = run.student_file.read_bytes()
    run.student_file.write_bytes(
        content[: len(content) // 2] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1])
    )
    with pytest.raises(ValueError, match=r"damaged.*Delete .*student\.safetensors and start the run once more"):
        folders.publish(run, folder="loras")
    assert not published.exists()
    run.student_file.unlink()
    last = sorted(run.files("stages", ".safetensors"), key=lambda file: int(file.stem.split()[0]))[0]
    last.write_bytes(last.read_bytes()[:-7])
    train(model, "run")
    assert same(published, mine), "out of the checkpoint, the last stage's file being damaged too"


def test_a_student_of_nan_is_neither_loaded_nor_merged(model, output):
    train(model, "run")
    file = folders.run_named("run").student_file
    tensors, metadata = read_tensors(file)
    metadata.pop("fewstep.sha256")
    name = min(tensors)
    save_file({**tensors, name: tensors[name] * float("nan")}, file, metadata=metadata)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"run \(run\) is not written or used: 1 of its .* NaN"),
    ):
        students.LoadStudent().load(model, "run (run)")


def test_watching_says_it_too(model, output, told):
    published = output / "loras" / "fewstep"
    published.mkdir(parents=True)
    (published / "run.safetensors").write_bytes(b"no model")
    train(model, "run")
    told.clear()
    with torch.inference_mode():
        runs.WatchRun().watch(model, "run", 1)
    assert told[-1]["published"] == "fewstep/run 2.safetensors"


@pytest.mark.parametrize("entry", ["teacher_sha256", "student.rank"])
def test_a_run_that_is_another_when_it_is_finished_is_not_loaded(entry, model, output, told, monkeypatch):
    """Another server began it anew under its name: its student was put on a teacher that was not its own."""
    train(model, "run")
    run = folders.run_named("run")
    written = run.description()

    def anew(*_, **__):
        value = 3 if entry == "student.rank" else "ab"
        run.place("run.json").write_text(json.dumps(written | {"run": written["run"] | {entry: value}}))

    monkeypatch.setattr(runs, "_wait", anew)
    with torch.inference_mode(), pytest.raises(ValueError, match="'run' was begun anew while it was watched"):
        runs.WatchRun().watch(model, "run", 1)


# --- starts that come to nothing -------------------------------------------------------------------------------------


def test_a_start_that_training_refuses_leaves_no_run(model, output, told, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("this device does not compute in that")

    monkeypatch.setattr("comfyui_fewstep.nodes.distillation.running._require_possible", refuse)
    with pytest.raises(ValueError, match="does not compute"):
        train(model, "run")
    assert told[-1]["state"] == "failed"
    assert not any((output / "fewstep" / "runs").iterdir())


def test_what_fails_later_is_kept_with_the_run_until_it_goes_on(model, output, told, monkeypatch):
    from comfyui_fewstep.nodes.distillation.observing import Show

    def fail(self, metrics):
        if metrics.iteration == 2:
            raise RuntimeError("out of something")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(Show, "__call__", fail)
        train(model, "run")
    run = folders.run_named("run")
    assert run.error() == "out of something"
    train(model, "run")
    assert run.error() is None
    assert run.finished


@pytest.mark.parametrize("name", ["\u5b66\u751f", "\u043c\u043e\u0439 \u0441\u0442\u0443\u0434\u0435\u043d\u0442"])
def test_a_name_in_any_script_is_kept_through_all(name, model, output):
    train(model, name)
    assert same(output / "loras" / "fewstep" / f"{name}.safetensors", student(output, name))
    assert f"{name} (run)" in folders.student_files()
    assert train(model, name)[2] == name
