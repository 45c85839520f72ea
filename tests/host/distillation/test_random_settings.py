"""Settings drawn at random, of all methods and students: what is refused leaves nothing, what runs is whole and repeatable."""

import functools
import random

import pytest
import torch
from architectures import ARCHITECTURES, conditioning, has, noise_for, tiny
from cancelling import cancel_at
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.nodes.host import folders
from hosting import inputs_of
from test_lora import assert_whole, draw, output, read_student_of, snapshot  # noqa: F401 (a fixture)

KINDS = list(filter(has, ARCHITECTURES))
METHODS = [
    "FewStepProgressiveDistillation",
    "FewStepGuidanceDistillation",
    "FewStepConsistencyDistillation",
    "FewStepConsistencyTraining",
    "FewStepDistributionMatching",
]
SMALL = {
    **dict.fromkeys(("steps", "target_steps", "fewest_steps"), (1, 3)),
    **dict.fromkeys(("last_stages_iterations", "companion_updates", "checkpoint_every"), (1, 4)),
    "iterations": (4, 5),
    **dict.fromkeys(("conversion_iterations", "companion_first", "adversarial_from", "warmup"), (0, 2)),
    **dict.fromkeys(("levels", "last_levels", "consistency_levels", "anchor_steps"), (4, 9)),
    **dict.fromkeys(("start_steps", "first_levels"), (2, 8)),
    **dict.fromkeys(("merged_steps", "accumulation"), (1, 2)),
    **dict.fromkeys(("batch_size", "rank", "companion_rank"), (1, 6)),
    "seed": (0, 99),
}
FEW = {
    "learning_rate": [1e-4, 1e-3],
    "guidance_scale": [1.0, 1.5, 5.0],
    "guidance_scale_max": [0.0, 0.0, 7.5],
    "renoise_from": [0.02, 0.1],
    "renoise_to": [0.9, 0.98],
    "adversarial_weight": [0.0, 1.0],
    "gradient_clip": [0.5, 1.0],
    "ema_decay": [0.0, 0.9],
    "caption_dropout": [0.0, 0.3],
    "optimiser": ["adam", "adamw", "schedule_free"],
    "precision": ["as_loaded", "float32"],
    "distance": ["squared", "pseudo_huber", "pseudo_huber_latents"],
}
ALWAYS = {"iterations": 4, "companion_first": 1, "accumulation": 1}
"""Whose own defaults are not for tests."""
ELSEWHERE = {"run_name", "start_lora", "start_strength", "start_from"}


def at_random(node, rng, *, rare):
    """What somebody may set on a node. rare: how many of its optional inputs are touched."""
    given = {}
    for name, (kind, *rest) in inputs_of(NODE_CLASS_MAPPINGS[node]).items():
        optional = name in NODE_CLASS_MAPPINGS[node].INPUT_TYPES().get("optional", {})
        if name in ELSEWHERE or (isinstance(kind, str) and kind not in ("INT", "FLOAT", "BOOLEAN")):
            continue
        if optional and rng.random() > rare:
            given |= {name: ALWAYS[name]} if name in ALWAYS else {}
        elif name in FEW or isinstance(kind, list):
            given[name] = rng.choice(FEW.get(name, kind))
        elif kind == "BOOLEAN":
            given[name] = rng.random() < 0.5
        elif kind == "INT":
            given[name] = rng.randint(*SMALL[name])
        else:
            given[name] = rng.choice([rest[0]["default"], min(1.0, rest[0]["max"])])
    return given


def run(node, **given):
    made = NODE_CLASS_MAPPINGS[node]
    return getattr(made(), made.FUNCTION)(**given)


def student_at_random(rng):
    kind = rng.choice(["LoRA", "full weights", "none is connected"])
    if kind == "full weights":
        return {"student": students.FullWeights()}
    if kind == "LoRA":
        return {"student": run("FewStepLoRAStudent", **at_random("FewStepLoRAStudent", rng, rare=1.0))[0]}
    return {}


@torch.inference_mode()
def distil(name, *, model, kind, method, chosen, batch, **training):
    return distillation.Distill().distil(
        model,
        method=run(method, **chosen)[0],
        run_name=name,
        latents={"samples": noise_for(model, seed=1, batch=batch)},
        positive=conditioning(kind, seed=2),
        negative=conditioning(kind, seed=5),
        **training,
    )


def trained_at_random(model, kind, method, rng):
    """What trains once more under a name, with the first settings that are not refused, and the student that it gave."""
    before = snapshot(model)
    for _ in range(50):
        rare = rng.choice([0.1, 0.3, 0.6])
        given = {
            **at_random("FewStepDistill", rng, rare=rare),
            **student_at_random(rng),
            "batch": rng.choice([1, 3, 8]),
        }
        chosen = at_random(method, rng, rare=rare)
        train = functools.partial(distil, model=model, kind=kind, method=method, chosen=chosen, **given)
        try:
            return train, train("whole")[0]
        except ValueError:
            assert_whole(model, before)
            assert not folders.run_named("whole").path.exists()
    raise AssertionError("all were refused")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 20))])
def test_what_is_set_at_random_is_refused_or_trains_repeatably_and_is_loaded_as_it_was(
    method,
    seed,
    output,  # noqa: F811
    monkeypatch,
):
    """A run that was stopped anywhere goes on to the very same student, whatever is combined."""
    rng = random.Random(seed)
    kind = KINDS[(seed + METHODS.index(method)) % len(KINDS)]
    model = tiny(kind)
    before = snapshot(model)
    train, student = trained_at_random(model, kind, method, rng)
    assert_whole(model, before)
    for _ in range(2):
        with monkeypatch.context() as patch:
            cancel_at(patch, rng.randint(1, 2), KeyboardInterrupt)  # it looks once an iteration
            with pytest.raises(KeyboardInterrupt):
                train("stopped")
    assert_whole(model, before)
    train("stopped")
    whole, stopped = (read_student_of(output, name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    drawn = draw(student, kind)
    student.unpatch_model()
    loaded = run("FewStepLoadStudent", model=tiny(kind), student="whole (run)")[0]
    torch.testing.assert_close(draw(loaded, kind), drawn, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(drawn).all()
