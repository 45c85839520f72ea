"""The phases of a run: told by name and in order, each with how far it is, and each of those before training heeds a cancel."""

import collections
import itertools
import math

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits
from comfyui_fewstep.nodes.distillation import distillation, telling
from comfyui_fewstep.nodes.distillation.data.teacher_pictures import PromptSource
from comfyui_fewstep.nodes.distillation.fast import choosing, make_it_fast
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.nodes.distillation.planning import HELD, TIMED
from comfyui_fewstep.trainers.training import trial
from making_data import TRAINING, run_folder, same_tensors, student_of


@pytest.fixture
def told(output, monkeypatch):
    """What is told, none of it too early."""
    sent = []
    monkeypatch.setattr(telling.MESSAGES, "_send", lambda event, message: sent.append((event, message)))
    monkeypatch.setattr(telling.MESSAGES, "_sent", collections.deque([-math.inf], maxlen=1))
    monkeypatch.setattr(telling.MESSAGES, "_clock", itertools.count(0.0, 1.0).__next__)
    return sent


@torch.inference_mode()
def train(name="run"):
    teacher, _, clip = digits.DemoTeacher().load()
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=4, target_steps=2, iterations=2, weighting="constant", learning_rate=1e-3, guidance_scale=1.5
    )
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear")
    drawn = PromptSource(
        prompts=("3", "7"), width=32, height=32, pictures_per_prompt=2, steps=2, batch_size=1, clip=clip
    )
    return distillation.Distill().distil(
        teacher, method=method, run_name=name, student=lora, data=drawn, unique_id="5", ema_decay=0.9, **TRAINING
    )


def phases(told):
    """What was told, by name, each once in a row."""
    names = [message.get("phase") or message.get("state") or "training" for _, message in told]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_a_run_tells_its_phases_in_order(told):
    train()
    wanted = ["begun", "hashing", "encoding", "probing", "training", "measuring", "exporting", "finished"]
    assert phases(told) == wanted
    parts = [message for event, message in told if event == telling.PHASE]
    assert all((message["run"], message["node"]) == ("run", "5") for message in parts)
    encoding = [message for message in parts if message["phase"] == "encoding"]
    assert [message["share"] for message in encoding] == [0.0, 0.0, 0.25, 0.5, 0.75]
    assert all(message["seconds_left"] >= 0.0 for message in encoding[2:])


@pytest.mark.parametrize("phase", ["hashing", "encoding", "measuring", "exporting"])
def test_a_cancel_is_heard_in_every_phase_and_the_next_start_gives_what_an_unbroken_one_does(
    phase, told, output, monkeypatch
):
    """At the next thing that is done: no further one is told of."""
    train("unbroken")
    told.clear()

    def check():
        if told and told[-1][1].get("phase") == phase:
            raise host.signals.Cancelled

    with monkeypatch.context() as patched:
        patched.setattr("comfy.model_management.throw_exception_if_processing_interrupted", check)
        patched.setattr(host.identity, "_of_networks", {})
        with pytest.raises(host.signals.Cancelled):
            train("run")
    assert phases(told)[-2:] == [phase, "stopped"]
    saved = [path.stem for path in (run_folder(output, "run") / "checkpoints").glob("*.safetensors")]
    assert saved == (["00000002"] if phase in ("measuring", "exporting") else []), "nothing that was done is done again"
    train("run")
    assert same_tensors(student_of(output, "run"), student_of(output, "unbroken"))
    assert len(list((output / "loras" / "fewstep").iterdir())) == 2, "and no file that is half written"
    one, other = ((run_folder(output, name) / "metrics.jsonl").read_bytes() for name in ("run", "unbroken"))
    assert one == other


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trial, "LEAST_TIMED", 1)
    monkeypatch.setattr(trial, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(choosing, "BATCH", 1)


@torch.inference_mode()
def make_fast(**inputs):
    teacher, _, clip = digits.DemoTeacher().load()
    return make_it_fast.MakeItFast().make(
        teacher,
        steps="4",
        goal=choosing.CHEAPEST,
        run_name="run",
        clip=clip,
        prompts="3",
        side=32,
        pictures=1,
        unique_id="7",
        **inputs,
    )


def test_the_plan_is_told_before_the_training_begins(told, quick):
    """A node's own text comes when it ends, which may be hours later."""
    made = make_fast(do=make_it_fast.TRAIN, iterations=1)
    events = [event for event, _ in told]
    ((at, plan),) = [(i, message) for i, (event, message) in enumerate(told) if event == telling.PLAN]
    assert at < events.index(telling.STATE)
    assert (plan["run"], plan["node"]) == ("run", "7")
    assert any(line.startswith("in all: ") for line in plan["plan"])
    assert made["ui"]["text"] == ["\n".join(plan["plan"])]


def test_probing_is_told_and_heeds_a_cancel(told, quick, monkeypatch):
    asked = []

    def check():
        shares = [message.get("share") for _, message in told]
        asked.append(shares)
        if any(share for share in shares):
            raise host.signals.Cancelled

    monkeypatch.setattr(host.signals, "check_cancelled", check)
    with pytest.raises(host.signals.Cancelled):
        make_fast(do=make_it_fast.PLAN)
    assert {(message["run"], message["node"]) for _, message in told} == {("run", "7")}
    assert [(message["phase"], message["share"]) for _, message in told] == [
        ("probing", 0.0),
        ("probing", pytest.approx(HELD / (HELD * (1 + 2 + choosing.BATCH) + TIMED * choosing.BATCH))),
        (None, None),
    ], "and that it is over"


def test_the_share_of_a_plan_ends_at_all_of_it(told, quick):
    """Trials count by the samples that pass the networks in them, and those that are not needed are no longer to come."""
    make_fast(do=make_it_fast.PLAN)
    shares = [message["share"] for _, message in told if message.get("phase") == "probing"]
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_cancel_is_heard_before_each_pass_of_a_trial(told, quick, monkeypatch):
    """A whole batch on a slow machine takes a minute."""
    passes, own = [], host.training.as_denoiser

    def counting(*args, **kwargs):
        denoise = own(*args, **kwargs)

        def counted(x, sigma, **condition):
            passes.append(len(x))
            return denoise(x, sigma, **condition)

        return counted

    def check():
        if len(passes) == 2:
            raise host.signals.Cancelled

    monkeypatch.setattr(host.training, "as_denoiser", counting)
    monkeypatch.setattr(host.signals, "check_cancelled", check)
    with pytest.raises(host.signals.Cancelled):
        make_fast(do=make_it_fast.PLAN)
    assert len(passes) == 2


@pytest.mark.parametrize("do", [make_it_fast.TRAIN, make_it_fast.PLAN])
def test_what_is_refused_before_a_run_begins_is_told_to_its_node(told, quick, do):
    """Else its panel goes on saying what was before."""
    with pytest.raises(ValueError, match="folder"):
        make_fast(do=do, folder="/nowhere")
    *_, (event, message) = told
    assert event == telling.STATE
    assert (message["run"], message["node"], message["state"]) == ("run", "7", "failed")
    assert "folder" in message["error"]
    assert not host.folders.run_named("run").path.exists()
