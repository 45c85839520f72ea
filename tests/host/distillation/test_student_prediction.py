"""Students that predict something else than their teacher, on the host's real architectures: trained, saved, sampled."""

import uuid

import pytest
import torch
from cancelling import cancel_at
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
from architectures import conditioning, grid, kinds, noise_for, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.demo import digits, digits_model
from comfyui_fewstep.nodes.distillation import distillation, running
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.nodes.sampling import recipes, samplers
from comfyui_fewstep.samplers.recipe import Recipe
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.progressive import Grid, ProgressiveOptions
from comfyui_fewstep.trainers.storage.export import read_student
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.training.distillation import Distillation
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from test_architectures import run
from test_lora import TRAINING, assert_whole, output, snapshot  # noqa: F401
from test_save_student import save, small_sd15  # noqa: F401

TO_V = {"student_prediction": "v_prediction"}
CASES = {
    f"{kind}-{'-'.join(str(value) for value in changed.values())}": (kind, teacher, changed)
    for kind, teacher, changed in [
        ("sd15", "eps", {**TO_V, "iterations": 20}),
        ("sd15", "eps", {"student_prediction": "x0", "grid": "cosine"}),
        ("sdxl", "eps", {**TO_V, "iterations": 40}),
        ("sdxl", "eps", {"grid": "edm", "iterations": 40}),
        ("sd2_v", "v_prediction", {"student_prediction": "as_teacher"}),
        ("sd2_v", "v_prediction", {"student_prediction": "eps"}),
        ("sd3", "flow", {"last_stages_iterations": 24}),
    ]
}
GATE = {
    *(
        ("sd15-v_prediction-20", "lora"),
        ("sd15-x0-cosine", "full"),
        ("sd2_v-as_teacher", "lora"),
        ("sd2_v-eps", "full"),
    ),
    *(("sd3-24", "lora"), ("sd3-24", "full")),
}


@torch.inference_mode()
def distil(model, kind, *, learns="lora", name=None, iterations=12, **chosen):
    """As the graph runs it, from 4 steps to 2, all levels weighed alike: networks of random weights see no x0."""
    defaults = {
        "start_steps": 4,
        "target_steps": 2,
        "weighting": "snr_plus_one" if kind in ("sd3", "flux") else "snr",
        "learning_rate": 1e-2 if learns == "lora" else 1e-3,
    }
    (method,) = methods.ProgressiveDistillation().make(
        **{**defaults, "guidance_scale": 1.5, "iterations": iterations, **chosen}
    )
    student = (
        LoRAOptions(rank=8, alpha=8.0, layers=LoRALayers.LINEAR_AND_CONV)
        if learns == "lora"
        else students.FullWeights()
    )
    return distillation.Distill().distil(
        model,
        latents={"samples": noise_for(model, seed=1, batch=8)},
        positive=conditioning(kind, seed=2),
        negative=conditioning(kind, seed=5),
        method=method,
        student=student,
        run_name=name or uuid.uuid4().hex,
        **{**TRAINING, "batch_size": 8},
    )


@torch.inference_mode()
def draw(model, kind, sampler, sigmas):
    """SamplerCustom at cfg 1."""
    prompts = {"positive": conditioning(kind, seed=2), "negative": conditioning(kind, seed=5)}
    empty = {"samples": torch.zeros_like(noise_for(model))}
    inputs = {"add_noise": True, "noise_seed": 7, "cfg": 1.0, "sampler": sampler, "sigmas": sigmas}
    return run("SamplerCustom", model=model, **inputs, **prompts, latent_image=empty)["samples"]


def prediction(model):
    return host.models.prediction_type(host.models.model_sampling_of(model))


def by_loader(model, learns, name):
    """The student's published file through the host's own loader and Apply Recipe; its sampler and levels."""
    folder = "loras" if learns == "lora" else "diffusion_models"
    listed = next(f for f in (folder, "unet") if f in folder_paths.folder_names_and_paths)
    file = f"fewstep/{name}.safetensors"
    if learns == "lora":
        plain = run("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=1.0)
    else:
        network = host.training.trainable_copy(model)
        network.diffusion_model.load_state_dict(comfy.utils.load_torch_file(folder_paths.get_full_path(listed, file)))
        plain = host.training.model_from(network, like=model)
    return recipes.ApplyRecipe().apply(plain, recipes.FROM_FILE, file=f"{listed}/{file}")[:3]


@pytest.mark.parametrize(("case", "learns"), grid(CASES, ["lora", "full"], gate=lambda *given: given in GATE))
def test_it_learns_and_the_host_samples_it_as_we_do(case, learns, output):  # noqa: F811
    kind, teacher, chosen = CASES[case]
    model = tiny(kind)
    assert prediction(model) == teacher
    before = snapshot(model)
    student, _, name, _ = distil(model, kind, learns=learns, **chosen)
    assert_whole(model, before)

    losses = RunFolder(output / "fewstep" / "runs", name).losses()
    wanted = chosen.get("student_prediction", "as_teacher")
    converted = [] if wanted == "as_teacher" else [f"conversion to {wanted}"]
    assert list(losses) == [*converted, "4 to 2 steps"]
    for stage, values in losses.items():
        assert values[-1] < 0.97 * values[0], stage

    _, recipe, _ = read_student(output / "fewstep" / "runs" / name / "student.safetensors")
    expected = wanted if converted else teacher
    assert (recipe.prediction_type, recipe.schedule) == (expected, chosen.get("grid", "trailing"))
    assert prediction(student) == expected

    sigmas = torch.tensor(recipe.sigmas)
    (ours,) = samplers.LightningSampler().make()
    drawn = draw(student, kind, ours, sigmas)
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, draw(student, kind, run("KSamplerSelect", sampler_name="euler"), sigmas))
    with torch.inference_mode():
        loaded, sampler, levels = students.LoadStudent().load(model, f"{name} (run)")
        assert torch.equal(levels, sigmas)
        assert torch.equal(draw(loaded, kind, sampler, levels), drawn)
        applied, sampler, levels = by_loader(model, learns, name)
        assert prediction(applied) == expected
        torch.testing.assert_close(draw(applied, kind, sampler, levels), drawn, atol=1e-5, rtol=1e-5)
    if recipe.schedule == "trailing" and "fewstep_trailing" in comfy.samplers.KSampler.SCHEDULERS:
        assert torch.equal(stock_ksampler(student, kind), drawn)


@torch.inference_mode()
def stock_ksampler(student, kind):
    prompts = {"positive": conditioning(kind, seed=2), "negative": conditioning(kind, seed=5)}
    empty = {"samples": torch.zeros_like(noise_for(student))}
    settings = {"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "fewstep_trailing"}
    return run("KSampler", model=student, **settings, **prompts, latent_image=empty)["samples"]


@pytest.mark.parametrize("learns", ["lora", "full"])
@pytest.mark.parametrize(("kind", "wanted"), [("sd15", "v_prediction"), ("sdxl", "x0"), ("sd2_v", "eps")])
def test_the_student_is_read_otherwise_than_its_first_teacher(kind, wanted, learns):
    """The teacher as the MODEL itself, until it is a copy of the student; the student as the MODEL that it becomes."""
    model, x, sigma = tiny(kind), noise_for(tiny(kind)), torch.tensor([0.6, 9.0])
    own = prediction(model)
    chosen = LoRAOptions(rank=4, alpha=4.0) if learns == "lora" else students.FullWeights()
    with torch.inference_mode(False):
        condition = host.inputs.condition_for_training(model, conditioning(kind), latents=x, name="positive")
        condition = {name: value.expand(2, *value.shape[1:]) for name, value in condition.items()}
        with torch.no_grad():
            plain = host.training.as_denoiser(host.training.loaded(model))(x, sigma, **condition)
        with students.student_of(model, chosen, seed=0, prediction=wanted) as student, torch.no_grad():
            for value in student.parameters():
                value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
            taught = student.teacher(x, sigma, **condition)
            learning = student.denoiser(x, sigma, **condition)
            state = {name: value.clone() for name, value in student.state_dict().items()}
            student.promote()
            promoted = student.teacher(x, sigma, **condition)
            student.load_state_dict(state)
            back = student.teacher(x, sigma, **condition)
            tensors = student.exported()
            recipe = Recipe(
                method="any", steps=1, sigmas=(1.0, 0.0), schedule="trailing", gamma=0.0, prediction_type=wanted,
                noise_family="variance_exploding", guidance_scale=1.0,
            )  # fmt: skip
            made = students.with_student(model, tensors, lora=learns == "lora", recipe=recipe)
        with torch.no_grad():
            finished = host.training.as_denoiser(host.training.loaded(made))(x, sigma, **condition)
        made.unpatch_model()
    torch.testing.assert_close(taught, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(promoted, learning, atol=1e-4, rtol=1e-4)  # x0 has the rounding of eps times sigma, 9
    torch.testing.assert_close(finished, learning, atol=1e-4, rtol=1e-4)
    assert (learning - taught).abs().max() > 0.1
    assert (prediction(model), prediction(made)) == (own, wanted)
    assert host.models.prediction_type(model.model.model_sampling) == own, "the MODEL's network is as it was"


@pytest.mark.parametrize(
    ("stop", "learns"), grid([2, 5], ["lora", "full"], gate=lambda *given: given in {(2, "lora"), (5, "full")})
)
def test_a_cancelled_conversion_goes_on_bit_for_bit(stop, learns, output, monkeypatch):  # noqa: F811
    model = tiny("sd15")
    before = snapshot(model)
    chosen = {**TO_V, "iterations": 3, "learns": learns}
    whole = distil(model, "sd15", name="whole", **chosen)[2]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        cancel_at(patched, stop, KeyboardInterrupt)
        distil(model, "sd15", name="stopped", **chosen)
    assert_whole(model, before)
    resumed = distil(model, "sd15", name="stopped", **chosen)[2]
    one, other = (
        read_student(output / "fewstep" / "runs" / name / "student.safetensors")[0] for name in (whole, resumed)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_sdxl(monkeypatch):
    """The host takes the tiny UNet for SDXL's."""
    wanted = {
        **comfy.supported_models.SDXL.unet_config,
        "model_channels": 32,
        "transformer_depth": [0, 2],
    }
    monkeypatch.setattr(comfy.supported_models.SDXL, "unet_config", wanted)


def saved_and_loaded(model, kind, output_folder, **chosen):
    """(student, the checkpoint as the host's loader reads it, its name)"""
    student, _, name, _ = distil(model, kind, iterations=2, **chosen)
    (file,) = save(model, name, name=name)["result"]  # of its own: the host looks in the folders of earlier tests too
    with torch.inference_mode():
        loaded, *_ = comfy.sd.load_checkpoint_guess_config(
            str(output_folder / "checkpoints" / file), output_vae=False, output_clip=False
        )
    return student, loaded, f"checkpoints/{file}"


@pytest.mark.parametrize("learns", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
def test_a_saved_v_student_of_sd15_is_read_by_apply_recipe(learns, small_sd15, output):  # noqa: F811
    """The host cannot tell from the file and takes it for eps; the recipe in it knows."""
    model = tiny("sd15")
    student, loaded, file = saved_and_loaded(model, "sd15", output, learns=learns, **TO_V)
    assert prediction(loaded) == "eps"
    with torch.inference_mode():
        applied, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(loaded, recipes.FROM_FILE, file=file)
    assert prediction(applied) == "v_prediction"
    expected = draw(student, "sd15", sampler, sigmas)
    torch.testing.assert_close(draw(applied, "sd15", sampler, sigmas), expected, atol=1e-5, rtol=1e-5)
    assert (draw(loaded, "sd15", sampler, sigmas) - expected).abs().max() > 0.1


def test_a_saved_v_student_of_sdxl_is_known_by_the_host(small_sdxl, output):  # noqa: F811
    model = tiny("sdxl")
    student, loaded, file = saved_and_loaded(model, "sdxl", output, **TO_V)
    assert prediction(loaded) == "v_prediction"
    with torch.inference_mode():
        applied, sampler, sigmas, *_ = recipes.ApplyRecipe().apply(loaded, recipes.FROM_FILE, file=file)
    expected = draw(student, "sdxl", sampler, sigmas)
    for made in (loaded, applied):
        torch.testing.assert_close(draw(made, "sdxl", sampler, sigmas), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
def test_the_nodes_options_reach_the_training(output):  # noqa: F811
    model = tiny("sd15")

    def trained(**chosen):
        *_, name, lora = distil(model, "sd15", iterations=3, **chosen)
        steps = [line["stage_iterations"] for line in RunFolder(output / "fewstep" / "runs", name).metrics()]
        return lora, steps

    plain, steps = trained()
    assert steps == [3]
    for changed in ({"distance": "pseudo_huber"}, {"grid": "edm"}, {"student_prediction": "eps"}):
        other, _ = trained(**changed)
        same = all(torch.equal(other[key], value) for key, value in plain.items())
        assert same == ("student_prediction" in changed), "an eps-model has nothing to be converted to"
    assert trained(**TO_V, conversion_iterations=2, last_stages_iterations=4)[1] == [2, 4]


def test_evaluate_digits_samples_on_the_grid_of_the_run(output, monkeypatch):  # noqa: F811
    """The student on every second level of its start_steps, which an EDM grid of its own steps would not be.

    Of latents as ComfyUI gives them that was started with --fp16-intermediates.
    """
    model, sampled, seeds = digits_model.load_teacher(), [], set()
    values = {"start_steps": 8, "target_steps": 2, "iterations": 1, "weighting": "snr", "learning_rate": 1e-3}
    options = ProgressiveOptions.read({**values, "guidance_scale": 1.0, "grid": "edm"})
    made = Distillation(
        run=RunFolder(output / "fewstep" / "runs", "digits"),
        method=running.method_on(model, options, empty_prompt=False),
        data=TensorData(x0=torch.zeros(1, 4, 4, 4), condition={}),
        options=TrainOptions(),
        teacher_sha256="0",
        prediction_type="v_prediction",
    )
    made.run.claim(made.description())
    monkeypatch.setattr(
        host.models,
        "sample",
        lambda model, sampler, sigmas, *, noise, seed, **_: (sampled.append(sigmas), seeds.add(seed)) and noise.half(),
    )
    digits.EvaluateDigits().evaluate(model, model, "8, 3", "2, 4", 1.0, 100, 7, "digits")
    levels = host.models.noise_levels(host.models.model_sampling_of(model))
    fine = Grid.EDM.sigmas(8, table=levels)
    expected = [fine, Grid.EDM.sigmas(3, table=levels), fine[::4], fine[::2]]
    assert all(torch.equal(one, other) for one, other in zip(sampled, expected, strict=True))
    assert torch.equal(made.method.stages()[-1].sigmas, sampled[2])
    assert seeds == {7}, "of what students draw that add noise between steps"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds("sd3", "flux"))
@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (TO_V, "student_prediction is v_prediction, but the teacher's network is of the kind flow; .* as_teacher"),
        ({"grid": "cosine"}, "grid is cosine, but this is a flow model; allowed is trailing"),
    ],
)
def test_what_a_flow_model_cannot_do_is_refused_before_any_work(kind, chosen, said, output):  # noqa: F811
    with pytest.raises(ValueError, match=said):
        distil(tiny(kind), kind, name="refused", **chosen)
    assert not (output / "fewstep" / "runs" / "refused").exists()


@pytest.mark.parametrize("learns", ["lora", "full"])
def test_x0_and_eps_at_once_is_refused_in_the_host(learns, output):  # noqa: F811
    """Neither a combo of the node nor a run of a MODEL: no loader here builds a network with twice the output channels."""
    offered = methods.ProgressiveDistillation.INPUT_TYPES()["optional"]["student_prediction"][0]
    assert offered == ["as_teacher", "x0", "eps", "v_prediction"]
    said = "student_prediction is 'x0_and_eps'; allowed are as_teacher, x0, eps, v_prediction"
    with pytest.raises(ValueError, match=said):
        distil(tiny("sd15"), "sd15", name="refused", learns=learns, student_prediction="x0_and_eps")
    options = ProgressiveOptions.read(
        {"start_steps": 4, "target_steps": 2, "iterations": 2, "weighting": "snr", "learning_rate": 1e-3}
        | {"guidance_scale": 1.5, "student_prediction": "x0_and_eps"}
    )
    with pytest.raises(
        ValueError, match=r"student_prediction is x0_and_eps, which needs twice .*allowed are as_teacher, x0"
    ):
        running.method_on(tiny("sd15"), options, empty_prompt=True)
    assert not (output / "fewstep" / "runs" / "refused").exists()


def test_a_v_student_of_an_eps_model_is_not_put_on_a_v_model(output):  # noqa: F811
    *_, name, _ = distil(tiny("sd15"), "sd15", iterations=2, **TO_V)
    of_kind = "a model of Stable Diffusion's kind that predicts"
    with pytest.raises(
        ValueError, match=f"distilled from {of_kind} eps, but the connected model is {of_kind} v_prediction"
    ):
        students.LoadStudent().load(
            host.models.with_model_sampling(tiny("sd15"), prediction="v_prediction"), f"{name} (run)"
        )


def test_steps_that_cannot_be_merged_are_refused_where_they_are_typed():
    validate, typed = methods.ProgressiveDistillation.VALIDATE_INPUTS, {"start_steps": 8, "target_steps": 4}
    assert validate(**typed, merged_steps=4) is True
    assert validate(**typed, merged_steps=None) is True
    assert "merged_steps is 6; allowed are 2, 4, 8" in validate(**typed, merged_steps=6)


@pytest.mark.parametrize("name", ["conversion_iterations", "last_stages_iterations"])
def test_bad_counts_are_refused_where_they_are_typed(name):
    declared = methods.ProgressiveDistillation.INPUT_TYPES()
    host.limits.require(declared, {name: 5})
    with pytest.raises(ValueError, match=f"{name} is -1"):
        host.limits.require(declared, {name: -1})
