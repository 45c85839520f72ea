"""Make It Fast: the run of the nodes by hand, chosen by family and memory, and refused before it begins where nothing fits."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.data import folder_data, training_data
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.fast.cards import cards
from comfyui_fewstep.nodes.distillation.learning import latent_method, matching_method, methods, saving, students
from comfyui_fewstep.nodes.distillation.reports import report
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.samplers.recipe import Recipe
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.files import write_tensors
from comfyui_fewstep.trainers.training import trial
from comfyui_fewstep.trainers.training.distillation import Recorded
from encoders import RandomCLIP
from test_lora import assert_whole, output, snapshot  # noqa: F401 (a fixture)

SMALL = {"side": 32, "pictures": 4}


@pytest.fixture(autouse=True)
def timed_once(monkeypatch):
    monkeypatch.setattr(trial, "LEAST_TIMED", 1)
    monkeypatch.setattr(trial, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(trial, "DRAWS", 4)


@pytest.fixture
def quick(monkeypatch):
    """Fewer iterations and steps than a user gets."""

    def halvings(family, *, steps, guidance, iterations):
        given = {"start_steps": 4, "target_steps": steps, "iterations": 2, "guidance_scale": guidance}
        return methods.ProgressiveDistillation().make(weighting="constant", learning_rate=1e-3, **given)[0], "quick"

    monkeypatch.setitem(choosing.GOALS, choosing.CLOSEST, halvings)


def halvings_of(choose):
    """The goal's own, with fewer steps and iterations."""

    def chosen(family, *, steps, guidance, iterations):
        small = dataclasses.replace(family, start_steps=8)
        return choose(small, steps=steps, guidance=guidance, iterations=1)

    return chosen


def clip_of(kind):
    return RandomCLIP(*{"sd15": (768, 768), "sdxl": (2048, 1280)}[kind])


@torch.inference_mode()
def make(model, *, steps="2", goal=choosing.CLOSEST, name="run", do=make_it_fast.TRAIN, **wishes):
    return make_it_fast.MakeItFast().make(
        model, steps=steps, goal=goal, run_name=name, do=do, prompt={}, unique_id="1", **wishes
    )


def added(name):
    """To each layer's weight by the run's student, its input's dimensions as one."""
    tensors, *_ = read_student(folders.run_named(name).student_file)
    ends = "lora_up.weight", "lora_down.weight", "alpha"
    layers = {key.partition(".lora_up")[0] for key in tensors if ".lora_up" in key}
    parts = {layer: [tensors[f"{layer}.{end}"] for end in ends] for layer in layers}
    return {
        layer: float(alpha) / len(down) * up.flatten(1) @ down.flatten(1) for layer, (up, down, alpha) in parts.items()
    }


def test_the_plan_says_what_was_chosen_and_leaves_nothing(output, monkeypatch):  # noqa: F811
    monkeypatch.setattr(choosing, "BATCH", 4)
    model = tiny("sd15")
    before = snapshot(model)
    made = make(model, do=make_it_fast.PLAN, steps="8", clip=clip_of("sd15"), **SMALL)
    told = made["ui"]["text"][0].splitlines()
    assert told[0] == "your model: Stable Diffusion 1 or 2"
    assert "progressive distillation from 32 steps to 8" in told[1]
    assert told[2] == (
        "data: 4 pictures of 32 x 32 that your model draws from 4 prompts; 236 more are left out, for pictures is 4"
    )
    assert "guidance 7 is baked in" in told[3]
    assert [line.split(":")[0] for line in told[5:7]] == ["32 to 16 steps", "16 to 8 steps"]
    assert f"{4 * 400 * (5 + 3):,} forwards" in told[7]
    assert "with 4 of 4 pictures at a time" in told[8]
    assert not (output / "fewstep" / "runs").exists()
    assert_whole(model, before)
    with pytest.raises((ValueError, AttributeError, TypeError), match=r"plan only|ExecutionBlocker"):
        made["result"][0].clone()


def test_fewer_steps_of_a_finished_run_are_planned_and_fitted_as_any(output, quick, monkeypatch):  # noqa: F811
    """It goes on from its last stage: "plan only" trains nothing, and what is left fits into the memory as a whole run does."""
    fitted = dataclasses.replace(choosing.Wishes.options.fget(SimpleNamespace(_card=None, seed=0)), accumulation=8)
    plan = SimpleNamespace(told=lambda: ["so many forwards"])
    monkeypatch.setattr(choosing.Wishes, "planned", lambda self, run: (fitted, plan))
    model, given = tiny("sd15"), {"clip": clip_of("sd15"), **SMALL}
    make(model, **given)
    run = folders.run_named("run")
    students, iterations = run.students(), len(run.metrics())
    made = make(model, do=make_it_fast.PLAN, steps="1", **given)
    assert made["ui"]["text"][0].endswith("so many forwards")
    assert (run.students(), len(run.metrics())) == (students, iterations)
    make(model, steps="1", **given)
    assert Recorded.of(run).options.accumulation == 8
    assert run.stage_file(1).exists() and run.finished
    told = make(model, do=make_it_fast.PLAN, steps="1", **given)["ui"]["text"][0]
    assert told == "the run 'run' is finished; its student is loaded."


def test_a_run_of_four_steps_goes_on_to_two(output, monkeypatch):  # noqa: F811
    """With the layers that its student has, though a new run of two steps takes more; the plan says which."""
    monkeypatch.setitem(choosing.GOALS, choosing.CLOSEST, halvings_of(choosing.GOALS[choosing.CLOSEST]))
    model, given = tiny("sd15"), {"clip": clip_of("sd15"), **SMALL}
    make(model, steps="4", **given)
    run = folders.run_named("run")
    told = make(model, steps="2", do=make_it_fast.PLAN, **given)["ui"]["text"][0]
    assert "on layers linear;" in told
    assert "of these 1 iterations are done" in told
    make(model, steps="2", **given)
    recorded = Recorded.of(run)
    assert (recorded.student["layers"], recorded.method_options["last_stages_iterations"]) == ("linear", 2)
    assert run.stage_file(2).exists() and run.finished
    assert "on layers linear_and_conv" in make(model, name="new", do=make_it_fast.PLAN, **given)["ui"]["text"][0]


@pytest.mark.parametrize("do", [make_it_fast.TRAIN, make_it_fast.PLAN])
def test_what_cannot_be_trained_is_refused_before_anything_is_tried(do, output, quick, monkeypatch):  # noqa: F811
    """Also where only the plan is asked for: one that nobody could follow says less than why."""
    model, given = tiny("sd15"), {"clip": clip_of("sd15"), **SMALL}
    make(model, **given)
    monkeypatch.setattr(choosing.planning, "fitted", lambda *_, **__: pytest.fail("it was tried"))
    with pytest.raises(ValueError, match=r"'run' holds another run.*training.batch_size: there 16, here"):
        make(model, do=do, preset="8 GB card", **given)
    with pytest.raises(ValueError, match=r"start_lora is fewstep/run\.safetensors, a student of another teacher"):
        make(tiny("sd15", seed=1), name="other", do=do, start_lora="fewstep/run.safetensors", **given)
    assert not (output / "fewstep" / "runs" / "other").exists()


def test_the_sharpest_begins_as_the_closest_and_needs_fewer_iterations(output, quick, monkeypatch):  # noqa: F811
    """It hardly learns here, so that what comes out is what it began as."""
    asked = []

    def matching(family, *, steps, guidance, iterations):
        asked.append(iterations)
        given = {"steps": steps, "iterations": 1, "companion_first": 1, "guidance_scale": guidance}
        return matching_method.DistributionMatching().make(learning_rate=1e-9, **given)[0], "quick"

    monkeypatch.setitem(choosing.GOALS, choosing.SHARPEST, matching)
    model, given = tiny("sd15"), {"clip": clip_of("sd15"), **SMALL}
    make(model, name="closest", **given)
    file = "fewstep/closest.safetensors"
    made = make(model, name="sharpest", goal=choosing.SHARPEST, start_lora=file, **given)
    assert f"it begins as {file}" in made["ui"]["text"][0]
    assert "is matched where each step lands" in made["ui"]["text"][0]
    assert asked[-1] == 400
    own = choosing.Wishes(model=model, steps=2, goal=choosing.SHARPEST, start_lora=file, iterations=9, **given)
    assert (own.method.iterations, asked[-1]) == (1, 9)
    runs = output / "fewstep" / "runs"
    described = json.loads((runs / "sharpest" / "run.json").read_text())["run"]
    assert described["student.start_lora"] == file
    assert described["method.rollout"] == "landings", (
        "as the student that it begins as, which progressive distillation made"
    )
    first, then = added("closest"), added("sharpest")
    assert max(change.abs().max() for change in first.values()) > 1e-4
    assert first.keys() == then.keys()
    for name, change in first.items():
        torch.testing.assert_close(then[name], change, atol=1e-5, rtol=1e-3)
    with pytest.raises(ValueError, match=r"start_lora is 'fewstep/gone.safetensors'"):
        make(model, name="other", do=make_it_fast.PLAN, start_lora="fewstep/gone.safetensors", **given)


def test_what_begins_as_an_lcm_lora_or_as_others_files_matches_with_fresh_noise(output):  # noqa: F811
    """As such students draw; only one of ours that draws without is matched so."""
    model, given = tiny("sd15"), {"clip": clip_of("sd15"), **SMALL}
    loras = output / "loras" / "fewstep"
    loras.mkdir(parents=True)
    recipe = {"method": "consistency_distillation", "steps": 2, "sigmas": (9.0, 1.0, 0.0), "schedule": "lcm"}
    told = {**recipe, "prediction_type": "eps", "noise_family": "variance_exploding", "guidance_scale": 7.5}
    ours = {gamma: Recipe(**told, gamma=gamma).to_metadata() for gamma in (0.0, 1.0)}
    for gamma, metadata in {**ours, None: {}}.items():
        write_tensors(loras / f"{gamma}.safetensors", {"lora": torch.zeros(1)}, metadata=metadata)
        folders.list_own_models()
        file = f"fewstep/{gamma}.safetensors"
        wishes = choosing.Wishes(model=model, steps=2, goal=choosing.SHARPEST, start_lora=file, **given)
        assert wishes.student.gamma == gamma
        assert wishes.method.rollout.value == ("landings" if gamma == 0.0 else "fresh_noise")


def test_the_run_is_that_of_the_nodes_by_hand(output, quick):  # noqa: F811
    model = tiny("sd15")
    made = make(model, clip=clip_of("sd15"), **SMALL)
    wishes = choosing.Wishes(model=model, steps=2, goal=choosing.CLOSEST, clip=clip_of("sd15"), **SMALL)
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=4, target_steps=2, iterations=2, weighting="constant", learning_rate=1e-3, guidance_scale=7.0
    )
    (lora,) = students.LoRAStudentNode().make(rank=64, alpha=64.0, layers="linear_and_conv")
    with torch.inference_mode():
        distillation.Distill().distil(
            model,
            run_name="by hand",
            method=method,
            student=lora,
            data=wishes.data()["data"],
            seed=0,
            batch_size=16,
            optimiser="adam",
            weight_decay=0.0,
            gradient_clip=1.0,
            checkpoint_every=100,
        )
    runs = output / "fewstep" / "runs"
    one, other = (json.loads((runs / name / "run.json").read_text()) for name in ("run", "by hand"))
    assert one["run"] == other["run"]
    one, other = ((runs / name / "metrics.jsonl").read_bytes() for name in ("run", "by hand"))
    assert one == other
    _, _, sigmas, name, _ = made["result"]
    assert (len(sigmas), name) == (3, "run")
    again = make(model, clip=clip_of("sd15"), **SMALL)
    assert "is finished; its student is loaded" in again["ui"]["text"][0]


@pytest.mark.thorough
def test_latents_out_of_the_graph(output, quick):  # noqa: F811
    """Without a negative prompt there is nothing to guide away from."""
    model = tiny("sd15")
    latents, prompt = {"samples": noise_for(model, seed=1, batch=4)}, conditioning("sd15", seed=2)
    made = make(model, latents=latents, positive=prompt)
    assert "guidance 1 is baked in" in made["ui"]["text"][0]
    assert len(made["result"][2]) == 3


def test_matching_draws_no_pictures(output, monkeypatch):  # noqa: F811
    """The plan counts the companion's passes too: its four updates on shared samples beside the student's own."""
    monkeypatch.setattr(choosing, "BATCH", 2)
    model = tiny("sd15")
    wishes = {"clip": clip_of("sd15"), "goal": choosing.SHARPEST, "iterations": 1, "steps": "4", "side": 32}
    told = make(model, do=make_it_fast.PLAN, **wishes)["ui"]["text"][0].splitlines()
    assert told[1].startswith("distribution matching in 4 steps")
    assert told[2] == "data: 240 prompts, for pictures of 32 x 32"
    assert "guidance 5 is baked in" in told[3]
    assert not any("drawing" in line for line in told)


@pytest.mark.thorough
def test_matching_is_trained(output, monkeypatch):  # noqa: F811
    monkeypatch.setattr(choosing, "BATCH", 2)
    wishes = {"clip": clip_of("sd15"), "goal": choosing.SHARPEST, "iterations": 1, "steps": "2", "side": 32}
    assert make(tiny("sd15"), **wishes)["result"][0].model is not None
    assert (output / "loras" / "fewstep" / "run.safetensors").exists()


def freeing(monkeypatch, gigabytes):
    monkeypatch.setattr(host.training, "free_beside", lambda model: 1e9 * gigabytes / 0.9)


@pytest.mark.thorough
def test_the_batch_is_cut_to_what_fits(output, quick, monkeypatch):  # noqa: F811
    """Half of what two pictures at a time want leaves one, with gradient checkpointing where that helps."""
    model = tiny("sd15")
    monkeypatch.setattr(choosing, "BATCH", 8)
    wishes = choosing.Wishes(model=model, steps=2, goal=choosing.CLOSEST, clip=clip_of("sd15"), **SMALL)
    run = host.folders.run_named("run")
    _, plan = wishes.planned(run)
    assert (plan.options.accumulation, plan.options.gradient_checkpointing) == (1, False)
    freeing(monkeypatch, plan.needs.at(4) / 1e9)
    options, halved = wishes.planned(run)
    assert (options.accumulation, options.gradient_checkpointing) == (2, False)
    assert halved.fits
    freeing(monkeypatch, plan.needs.at(1) / 1e9)
    options, _ = wishes.planned(run)
    assert options.gradient_checkpointing
    freeing(monkeypatch, 1e-6)
    with pytest.raises(
        ValueError, match=r"one picture at a time, with gradient checkpointing, wants .* are free. Take smaller"
    ):
        wishes.planned(run)
    assert not (output / "fewstep" / "runs").exists()


def test_a_card_that_holds_the_model_and_no_more(output, quick):  # noqa: F811
    model = tiny("sd15")
    model.size = int(8e9)
    with pytest.raises(ValueError, match="one picture at a time"):
        make(model, memory="8 GB", clip=clip_of("sd15"), **SMALL)


def test_presets_are_those_of_the_files_and_give_way_to_what_is_chosen(output, monkeypatch):  # noqa: F811
    found = cards()
    assert list(found) == ["8 GB card", "12 GB card", "16 GB card", "24 GB card"]
    assert [card.gigabytes for card in found.values()] == [8, 12, 16, 24]
    given = {"model": tiny("sdxl"), "steps": 4, "goal": choosing.CLOSEST, "clip": clip_of("sdxl")}
    small, own = (choosing.Wishes(**given, preset="8 GB card", **more) for more in ({}, {"side": 1024}))
    card = found["8 GB card"]
    assert (small.student.rank, small.options.batch_size) == (card.rank, card.batch_size)
    assert (small.data()["data"].width, own.data()["data"].width) == (card.most_side, 1024)
    assert f"preset 8 GB card: batches of {card.batch_size}, pictures of {card.most_side} at most where side is 0" in (
        small.told()
    )
    asked = []
    monkeypatch.setattr(host.training, "beside_on_card", lambda model, gigabytes: asked.append(gigabytes))
    monkeypatch.setattr(choosing.planning, "fitted", lambda *_, **__: None)
    for more in ({}, {"memory": "24 GB"}, {"preset": "none"}):
        wishes = choosing.Wishes(**{**given, "preset": "8 GB card", **SMALL, **more})
        monkeypatch.setattr(choosing, "preparing", lambda *_, **__: [])
        wishes.planned(host.folders.run_named("run"))
    assert asked == [8.0, 24.0]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"rank": 4}', '{"gigabytes": 8, "rank": 0, "batch_size": 1, "most_side": 8}']
)
def test_a_damaged_preset_is_named(content, tmp_path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match=r"mine\.json"):
        cards(tmp_path)


def test_rare_inputs_are_folded_by_hosts_that_fold():
    """Those that most people need are in sight."""
    options = ["distance", "levels", "solver", "guidance_scale_max", "target_decay", "weighting", "grid", "scale_input"]
    for node, rare in (
        (make_it_fast.MakeItFast, make_it_fast.RARE),
        (distillation.Distill, distillation.RARE),
        (methods.ConsistencyDistillation, options),
        (latent_method.ScoreDistillation, ("companion_learning_rate", "companion_rank")),
        (folder_data.ImageFolder, set(folder_data.RARE) - {"pieces"}),
        (folder_data.ClipFolderNode, set(folder_data.RARE) - set(folder_data.OF_EDITS) - set(folder_data.DRAWN)),
        (
            folder_data.SoundFolderNode,
            set(folder_data.RARE) - {"bucket_step", "flip", *folder_data.OF_EDITS, *folder_data.DRAWN},
        ),
        (training_data.TeacherPictures, training_data.RARE),
        (training_data.TrainingPrompts, ()),
        (report.StudentReport, report.RARE),
        (saving.SaveStudentLoRA, ("names", "precision")),
    ):
        declared = node.INPUT_TYPES()
        inputs = {**declared["required"], **declared["optional"]}
        assert {name for name, (_, *about) in inputs.items() if about and about[0].get("advanced")} == set(rare)
    matching = matching_method.DistributionMatching.INPUT_TYPES()["optional"]
    assert [name for name, (_, about) in matching.items() if "advanced" not in about] == ["guidance"]


def test_what_is_missing_is_named(output):  # noqa: F811
    model = tiny("sd15")
    with pytest.raises(ValueError, match="clip is not connected"):
        make(model)
    with pytest.raises(ValueError, match="folder is given but vae is not connected"):
        make(model, folder="pictures", clip=clip_of("sd15"))
    with pytest.raises(
        ValueError, match="folder or references is 'pictures' and prompts are given too; give one of the two"
    ):
        make(model, folder="pictures", prompts="a fox", clip=clip_of("sd15"))


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"side": 36}, "side is 36; this model wants multiples of 8"),
        ({"side": 4}, "side is 4; this model wants multiples of 8"),
        ({"side": 32, "folder": "pictures", "vae": "any"}, "side is 32; what is in a folder wants 64 or more"),
        ({"guidance": 0.5}, "guidance is 0.5; allowed are 1 (none) to 100, and 0 for what is usual"),
    ],
)
def test_bad_numbers_are_named_as_the_node_names_them(wishes, said, output):  # noqa: F811
    """Not as the training data and methods do that are made of them; of latents out of the graph as of prompts."""
    if "guidance" in wishes:
        with pytest.raises(ValueError, match=re.escape(said)):
            make(tiny("sd15"), latents={"samples": torch.zeros(1, 4, 4, 4)}, positive=conditioning("sd15"), **wishes)
    with pytest.raises(ValueError, match=re.escape(said)):
        make(tiny("sd15"), clip=clip_of("sd15"), **wishes)
    assert not (output / "fewstep" / "runs").exists()
