"""Precision and gradient checkpointing on the host's real architectures, and what is left of them afterwards: nothing."""

from contextlib import contextmanager, nullcontext

import current_architectures
import pytest
import torch
from architectures import ARCHITECTURES, conditioning, grid, kinds, noise_for, tiny
from cancelling import cancel_at
from comfyui_fewstep.benchmarks.architectures.memory import left_in_memory
from comfyui_fewstep.benchmarks.architectures.parts import PARTS
from comfyui_fewstep.benchmarks.architectures.subject import Subject
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation import running
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.objective.loss import loss_and_error, weighted_error
from comfyui_fewstep.trainers.objective.method import Lesson
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.students.gradient_checkpointing import blocks_of
from comfyui_fewstep.trainers.students.student import probe_writes_in_place
from test_lora import assert_whole, distil, draw, output, read_student_of, snapshot  # noqa: F401 (a fixture)
from torch.nn import Linear

STUDENTS = {
    "LoRA": LoRAOptions(rank=4, alpha=2.0, layers=LoRALayers.LINEAR_AND_CONV),
    "full": students.FullWeights(),
}
BLOCKS = {"sd15": 14, "sd2_v": 14, "sdxl": 18, "sd3": 2, "flux": 4}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Step:
    """One training step of a kind of student: the target, and on demand the loss and its gradients."""

    def __init__(self, model, kind, student):
        self.network = getattr(student, "module", model.model).diffusion_model
        latents = {"samples": noise_for(model, seed=1, batch=2, height=16, width=16)}
        x0 = host.inputs.latents_for_training(model, latents)
        condition, unconditional = (
            host.inputs.condition_for_training(model, conditioning(kind, seed=seed), latents=x0, name=name)
            for seed, name in ((2, "positive"), (5, "negative"))
        )
        self.data = TensorData(x0=x0, condition=condition, unconditional=unconditional)
        sampling = host.models.model_sampling_of(model)
        (chosen,) = methods.ProgressiveDistillation().make(
            start_steps=4, target_steps=1, iterations=1, weighting="constant", learning_rate=1e-3, guidance_scale=1.5
        )
        method = chosen.on(running.teacher_kind(sampling, empty_prompt=True))
        self.student = student
        generator = torch.Generator().manual_seed(3)
        if student.kind == "lora":  # at its start nothing reaches the lower half
            for value in student.parameters():
                value.data.normal_(std=0.05, generator=generator)
        student.writes_in_place = probe_writes_in_place(student, self.data.take(torch.zeros(1, dtype=torch.long)))
        teacher, learning = student.teacher, student.denoiser
        batch = self.data.take(torch.arange(2))
        self.target = method.target(
            Lesson(batch=batch, stage=0, teacher=teacher, student=learning, generator=generator)
        )

    def loss(self):
        return weighted_error(self.student.denoiser, self.target)[0]

    def gradients(self):
        """(loss, gradient of each weight; None for one that counts for nothing)."""
        for value in self.student.parameters():
            value.grad = None
        with self.student.autograd():
            loss = self.loss()
            loss.backward()
        return loss.detach(), [value.grad for value in self.student.parameters()]

    def held(self):
        """Bytes that wait for backward in the second pass; in the first, blocks learn what they overwrite."""
        for _ in range(2):
            with self.student.autograd():
                left = left_in_memory(self.loss)
        return left


@contextmanager
def step_of(kind, which, *, model=None, **options):
    model = model or tiny(kind)
    with torch.inference_mode(False), students.student_of(model, STUDENTS[which], seed=0, **options) as student:
        yield Step(model, kind, student)


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", STUDENTS)
@pytest.mark.parametrize("kind", kinds(thorough=["sd2_v", "sdxl"]))
def test_checkpointing_changes_no_bit_of_loss_and_gradients(kind, which):
    """Three steps: a block's first pass learns what it overwrites, and the loop goes on after it."""
    with step_of(kind, which) as plain:
        loss, expected = plain.gradients()
    with step_of(kind, which, gradient_checkpointing=True) as less:
        assert torch.equal(less.target.x0, plain.target.x0)
        for _ in range(3):
            again, gradients = less.gradients()
            assert torch.equal(again, loss)
            assert len(gradients) == len(expected)
            assert all(
                one is two is None or torch.equal(one, two) for one, two in zip(gradients, expected, strict=True)
            )
    assert sum(value is not None and bool(value.abs().max() > 0) for value in expected) > 0.9 * len(expected)


@pytest.mark.parametrize(
    ("kind", "which"),
    grid(
        ["sd15", "sdxl", "sd3", "flux"],
        STUDENTS,
        gate=lambda kind, which: kind != "sdxl" and (kind == "sd3") == (which == "full"),
    ),
)
def test_checkpointing_holds_less_than_a_third_for_backward(kind, which):
    """In networks of as many blocks as real ones have: the tiny ones' few have nothing between them and the ends."""
    deep = ARCHITECTURES[kind].deeper()
    with step_of(kind, which, model=deep.model()) as plain:
        usual = plain.held()
    with step_of(kind, which, model=deep.model(), gradient_checkpointing=True) as less:
        assert less.held() < 0.3 * usual


@pytest.mark.parametrize("kind", current_architectures.kinds("qwen_image", "hidream", "ace_step", "ltxav"))
def test_checkpointing_finds_blocks_that_have_lists_in_them(kind):
    figure, right = PARTS["held"](Subject(current_architectures.ALL[kind]))
    assert right, figure


@pytest.mark.parametrize("kind", current_architectures.kinds("ltxav"))
def test_checkpointing_keeps_what_blocks_overwrite_in_a_tuple(kind):
    figure, right = PARTS["checkpointing"](Subject(current_architectures.ALL[kind]))
    assert right, figure


@pytest.mark.parametrize("kind", kinds())
def test_the_blocks_are_found(kind):
    found = blocks_of(tiny(kind).model.diffusion_model)
    assert len(found) == BLOCKS[kind], list(found)


def test_the_hosts_notes_between_blocks_are_seen_again():
    """An attention patch that acts by the block's place, which the host writes into one dictionary as it goes."""

    def by_place(n, context, value, options):
        _, number = options["block"]
        return n * (1.0 + 0.1 * number + options["block_index"]), context, value

    model = tiny("sdxl")
    model.set_model_attn1_patch(by_place)
    with step_of("sdxl", "LoRA") as unpatched, step_of("sdxl", "LoRA", model=model) as plain:
        loss, expected = plain.gradients()
        assert not torch.equal(unpatched.gradients()[0], loss)
    with step_of("sdxl", "LoRA", model=model, gradient_checkpointing=True) as less:
        again, gradients = less.gradients()
    assert torch.equal(again, loss)
    assert all(torch.equal(one, two) for one, two in zip(gradients, expected, strict=True))


def test_a_patch_that_finds_its_block_by_counting_is_refused_with_checkpointing_and_taken_without():
    """As the host's Z-Image control patch: computed again in backward, the blocks would count on."""
    model, seen = tiny("sd15"), []

    def by_count(q, k, v, options):
        place = (options["block"], options["block_index"])
        del seen[: len(seen) if place in seen[:1] else 0]
        seen.append(place)
        return q * (1.0 + 0.3 * len(seen)), k, v

    model.set_model_attn1_patch(by_count)
    with step_of("sd15", "LoRA", model=model) as plain:
        assert torch.equal(plain.gradients()[0], plain.gradients()[0])
    said = pytest.raises(
        RuntimeError, match=r"counts its calls.* Switch gradient_checkpointing off, or remove that node"
    )
    with step_of("sd15", "LoRA", model=model, gradient_checkpointing=True) as less, said:
        less.gradients()


def test_in_place_blocks_need_no_other_guard_with_checkpointing():
    """What the blocks overwrite is kept by the checkpoints; copying on every write costs time."""
    with step_of("sd15", "LoRA", gradient_checkpointing=True) as less:
        assert not less.student.writes_in_place


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("kind", "which"),
    grid(
        ["sd15", "sd3", "flux"],
        STUDENTS,
        gate=lambda kind, which: kind == "flux" or (kind == "sd15") == (which == "LoRA"),
    ),
)
def test_the_networks_compute_in_the_precision_and_all_else_in_float32(kind, which, precision, checkpointing):
    with step_of(kind, which) as plain:
        expected_loss, expected = plain.gradients()
    seen = set()
    with step_of(kind, which, precision=precision, gradient_checkpointing=checkpointing) as step:
        for layer in step.network.modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                layer.register_forward_hook(lambda _, args, output: seen.update({args[0].dtype, output.dtype}))
        loss, gradients = step.gradients()
        with torch.no_grad():
            step.student.teacher(step.target.x_t, step.target.sigma, **step.target.condition)
        assert seen == {PRECISIONS[precision]}
        assert step.target.x0.dtype == step.target.x_t.dtype == step.target.weight.dtype == torch.float32
        with torch.no_grad():
            assert loss_and_error(step.student.denoiser, step.target)[1].dtype == torch.float32
        assert {value.dtype for value in [loss, *step.student.parameters()]} == {torch.float32}
    assert {value.dtype for value in gradients if value is not None} == {torch.float32}
    flat, reference = (
        torch.cat([value.flatten() for value in of if value is not None]) for of in (gradients, expected)
    )
    if precision == "float32":
        assert torch.equal(loss, expected_loss)
        assert torch.equal(flat, reference)
    else:
        assert not torch.equal(flat, reference)
        # the host gives Flux its guidance times 1000 in half precision, which moves its embedding
        assert torch.cosine_similarity(flat, reference, dim=0) > (0.8 if kind == "flux" else 0.98)
        assert float(loss) == pytest.approx(float(expected_loss), rel=0.05)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", kinds(thorough=["sd2_v", "sdxl"]))
def test_it_is_the_hosts_own_way_of_computing_in_another_type(kind, precision):
    """Bit for bit what a MODEL gives that the host itself loaded so."""
    with step_of(kind, "LoRA", model=tiny(kind, computes_in=PRECISIONS[precision])) as loaded:
        loss, expected = loaded.gradients()
    with step_of(kind, "LoRA", precision=precision) as step:
        again, gradients = step.gradients()
        assert torch.equal(step.target.x0, loaded.target.x0)
    assert torch.equal(again, loss)
    assert all(torch.equal(one, two) for one, two in zip(gradients, expected, strict=True))


def test_full_precision_beside_weights_of_half_precision():
    """float32 on a MODEL that was loaded in half precision: no activation is rounded, the weights are what they are."""
    model, rounded = tiny("sd15"), tiny("sd15")
    with torch.inference_mode():
        rounded.model.diffusion_model.to(torch.bfloat16).float()
        model.model.diffusion_model.to(torch.bfloat16)
        model.model.diffusion_model.dtype = torch.bfloat16
    with (
        step_of("sd15", "LoRA", model=rounded) as plain,
        step_of("sd15", "LoRA", model=model, precision="float32") as one,
    ):
        (loss, gradients), (expected_loss, expected) = one.gradients(), plain.gradients()
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(
    ("kind", "which"),
    grid(
        ["sd15", "sd3", "flux"],
        STUDENTS,
        gate=lambda kind, which: kind == "flux" or (kind == "sd15") == (which == "full"),
    ),
)
def test_the_model_is_whole_afterwards(kind, which, stop, output, monkeypatch):  # noqa: F811
    model = tiny(kind)
    picture = draw(model, kind)  # first: the host's own loading leaves marks on the modules
    before, state = snapshot(model), attributes(model.model)
    if stop:
        cancel_at(monkeypatch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
        distil(
            model,
            kind,
            iterations=2,
            student=STUDENTS[which],
            precision="bfloat16",
            gradient_checkpointing=True,
        )
    assert_whole(model, before)
    assert attributes(model.model) == state
    assert torch.equal(draw(model, kind), picture)


def attributes(network):
    """The names of what every module holds, and what says in which precision it computes."""
    return network.manual_cast_dtype, {
        path: (sorted(module.__dict__), getattr(module, "comfy_cast_weights", None), getattr(module, "dtype", None))
        for path, module in network.named_modules()
    }


def test_checkpointing_may_be_switched_on_in_a_run_and_precision_not(output, monkeypatch):  # noqa: F811
    """Whoever runs out of memory goes on with the same run, and the result is the same."""
    model = tiny("sd15")
    expected = read_student_of(output, distil(model, "sd15", iterations=3, name="whole")[2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cancel_at(patch, 4, KeyboardInterrupt)
        distil(model, "sd15", iterations=3, name="resumed")
    with pytest.raises(ValueError, match=r"training\.precision: there as_loaded, here bfloat16"):
        distil(model, "sd15", iterations=3, name="resumed", precision="bfloat16")
    resumed = read_student_of(
        output, distil(model, "sd15", iterations=3, name="resumed", gradient_checkpointing=True)[2]
    )
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


def test_a_precision_of_no_use_is_refused_before_work(output, monkeypatch):  # noqa: F811
    with pytest.raises(ValueError, match=r"precision is 'float8'; allowed are as_loaded, float32, bfloat16, float16"):
        distil(tiny("sd15"), "sd15", precision="float8")
    model = tiny("sd15")
    model.model.model_config.supported_inference_dtypes = [torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match=r"precision is float16, in which this model .* allowed are bfloat16, float32"):
        distil(model, "sd15", precision="float16")
    model = tiny("sd15")
    model.model.diffusion_model.time_embed[0] = Linear(32, 128)
    with pytest.raises(ValueError, match=r"precision is bfloat16, but time_embed\.0 is no layer of ComfyUI's own"):
        distil(model, "sd15", precision="bfloat16")

    def unable(*_, **__):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", unable)
    with pytest.raises(ValueError, match=r"precision is float16, which cpu cannot compute in .*slow_conv2d_cpu"):
        distil(tiny("sd15"), "sd15", precision="float16")
    assert not list(output.glob("**/checkpoints/*"))
