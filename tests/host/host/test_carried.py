"""What a MODEL carries beside its weights: all kinds are in the table, and what cannot be followed is refused."""

import functools
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.ldm.modules.attention
from architectures import conditioning, kinds, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from comfyui_fewstep.nodes.host.teachers.carried import CALLBACKS, OPTIONS, WRAPPERS, Part
from comfyui_fewstep.trainers.data.batches import Batch
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LoRAOptions
from comfyui_fewstep.trainers.students.student import probe_writes_in_place
from gradients import cosine, of_lora
from todays_inputs import hosts_x0, noise

ATTENTION = comfy.ldm.modules.attention
CURRENT = pytest.mark.skipif(not hasattr(tiny("sd15"), "add_wrapper_with_key"), reason="this host has no wrappers")
HAS_OVERRIDE = "optimized_attention_override" in inspect.getsource(ATTENTION)
READS = re.compile(
    r"""model_options(?:\[|\.(?:get|pop|setdefault)\()["'](\w+)["']|["'](\w+)["'] in (?:self\.)?model_options\b"""
)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_every_option_that_the_host_reads_as_it_samples():
    root = Path(comfy.__path__[0])
    names = (
        "samplers",
        "sampler_helpers",
        "model_patcher",
        "sample",
        "context_windows",
        "multigpu",
        "model_base",
        "hooks",
    )
    files = [root / f"{name}.py" for name in names]
    files += [*(root / "k_diffusion").glob("*.py"), *(root.parent / "comfy_extras").glob("nodes_*sampler*.py")]
    read = {a or b for file in files if file.is_file() for a, b in READS.findall(file.read_text())}
    assert "sampler_cfg_function" in read
    assert read <= OPTIONS.keys()


@CURRENT
def test_the_table_has_every_wrapper_and_callback_of_the_host():
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    def kinds(holder):
        return {value for name, value in vars(holder).items() if name.isupper()}

    assert kinds(WrappersMP) == WRAPPERS.keys()
    assert kinds(CallbacksMP) == CALLBACKS.keys()


def test_what_packs_keep_on_a_model_is_never_asked_whether_it_is_true():
    """Several numbers are neither."""
    model = tiny("sd15")
    model.model_options["a_packs_own"] = torch.ones(2)
    host.carried.require_supported(model)


@CURRENT
@pytest.mark.parametrize("kind", [kind for kind, part in CALLBACKS.items() if part is Part.REFUSED])
def test_callbacks_of_a_sampling_are_refused_by_name_and_others_are_not(kind):
    model = tiny("sd15")
    model.add_callback_with_key("on_cleanup", "mine", print)
    host.training.loaded(model)
    model.add_callback_with_key(kind, "mine", print)
    with pytest.raises(ValueError, match=rf"callbacks {kind} \(print of builtins\), which training does not support"):
        host.training.loaded(model)


def test_a_function_is_named_by_its_author_and_file():
    assert host.carried.whose(functools.partial(tiny, "sd15")) == f"{tiny.__qualname__} of {tiny.__module__}"
    pack = types.FunctionType(
        compile("0", "f", "eval"), {"__name__": "/home/me/custom_nodes/Pack_x_1.nodes"}, "patched"
    )
    pack.__qualname__ = "Node.patch.<locals>.patched"
    assert host.carried.whose(pack) == "Node.patch of nodes"


# --- followed, or refused --------------------------------------------------------------------------------------------


def batch_of(model, *, unconditional=False):
    x = noise(1, 4, 8, 8)
    inputs = [
        host.inputs.condition_for_training(model, conditioning("sd15", seed=seed), latents=x, name="positive")
        for seed in (0, 1)
    ]
    return Batch(x0=x, condition=inputs[0], unconditional=inputs[1] if unconditional else None)


def of_attention(patch):
    model = tiny("sd15")
    model.set_model_attn1_output_patch(patch)
    return model


def guided(out, options):
    """As NAG: only where prompt and negative prompt stand in one batch."""
    told = options["cond_or_uncond"]
    if 1 in told and 0 in told:
        out = out.clone()
        out[:1] = 3.0 * out[:1] - 2.0 * out[1:]
    return out


def in_the_prompt_alone(out, options):
    """As IPAdapter: rows of the negative prompt are treated otherwise."""
    told = options["cond_or_uncond"]
    return torch.cat([(1.0 if one else 1.5) * rows for one, rows in zip(told, out.chunk(len(told)), strict=True)])


def at_high_noise(out, options):
    """Start and end of a patch."""
    return out * 1.5 if options["sigmas"][0] > 1.0 else out


def in_the_first_half(out, options):
    """As attention guidance that takes the first half of a batch for the prompt's."""
    return torch.cat([out[:1] * 1.5, out[1:]])


def at_the_highest_noise(out, options):
    """As Patch Model Add Downscale: in the first third of a sampling."""
    return out * 1.5 if options["sigmas"][0] > 5.0 else out


class Cache:
    """Of the step before, where this one's input is near."""

    def __init__(self):
        self.kept = {}

    def __call__(self, out, options):
        place = options["block"], options["block_index"]
        seen, kept = self.kept.get(place, (None, None))
        if seen is None or (out - seen).abs().mean() > 0.001 * out.abs().mean():
            seen, kept = self.kept[place] = out.clone(), out * 1.5
        return kept


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        (guided, r"guided of .*acts on prompt and negative prompt together"),
        (at_high_noise, "acts on a part of the noise levels"),
        (at_the_highest_noise, "acts on a part of the noise levels"),
        (in_the_first_half, "acts on a sample by its place in the batch"),
        (Cache(), "Cache of .*remembers the step before"),
    ],
)
def test_a_patch_that_a_training_step_cannot_follow_is_refused_by_name(patch, why):
    model = of_attention(patch)
    with pytest.raises(ValueError, match=rf"the MODEL carries attn1_output_patch \(.*{why}"):
        host.following.require_followed(model, batch_of(model))


def test_a_patch_that_spares_the_negative_prompt_is_refused_where_there_is_one():
    model = of_attention(in_the_prompt_alone)
    host.following.require_followed(model, batch_of(model))
    with pytest.raises(ValueError, match="acts on the negative prompt otherwise"):
        host.following.require_followed(model, batch_of(model, unconditional=True))


@pytest.mark.parametrize(
    "kind", ["attn1_patch", "attn2_patch", "attn1_output_patch", "output_block_patch", "attn1", "attn2"]
)
def test_a_patch_that_acts_on_each_sample_alone_is_followed(kind):
    """Of every kind: the denoiser with it is the host's, and another than without."""
    bare, model = tiny("sd15"), tiny("sd15")
    if kind in ("attn1", "attn2"):
        for i in range(2):
            model.set_model_patch_replace(lambda q, k, v, options: 1.5 * q, kind, "input", i + 1)
    elif kind == "output_block_patch":
        model.set_model_patch(lambda h, skip, options: (1.5 * h, skip), kind)
    elif kind.endswith("output_patch"):
        model.set_model_patch(lambda out, options: 1.5 * out, kind)
    else:
        model.set_model_patch(lambda q, k, v, options: (1.5 * q, k, 1.5 * v), kind)
    host.following.require_followed(model, batch_of(model))

    def answer(of):
        batch = batch_of(of)
        with torch.no_grad():
            return host.training.as_denoiser(host.training.loaded(of), model=of)(
                batch.x0, torch.full((1,), 3.0), **batch.condition
            )

    assert not torch.allclose(answer(model), answer(bare), atol=1e-3)


@pytest.mark.skipif(
    not (Path(comfy.__path__[0]).parent / "comfy_extras" / "nodes_nag.py").is_file(), reason="this host has no NAG"
)
def test_the_hosts_own_nag_is_refused_and_its_free_u_is_followed():
    nag = importlib.import_module("comfy_extras.nodes_nag").NAGuidance
    model = nag.execute(tiny("sd15"), 5.0, 0.5, 1.5)[0]
    with pytest.raises(ValueError, match=r"NAGuidance.execute of nodes_nag.*prompt and negative prompt together"):
        host.following.require_followed(model, batch_of(model))
    free_u = importlib.import_module("comfy_extras.nodes_freelunch").FreeU.execute(tiny("sd15"), 1.1, 1.2, 0.9, 0.2)[0]
    host.following.require_followed(free_u, batch_of(free_u))


def test_full_weights_refuse_patches_and_what_stands_in_a_layers_place_by_name():
    model = of_attention(guided)
    with pytest.raises(ValueError, match=r"attn1_output_patch \(guided of .*full weights cannot take over"):
        host.training.trainable_copy(model)
    model = tiny("sd15")
    name = next(
        f"diffusion_model.{n}.forward" for n, m in model.model.diffusion_model.named_modules() if n.endswith("to_q")
    )
    model.add_object_patch(name, print)
    with pytest.raises(ValueError, match=r"to_q.forward \(print of builtins\).*full weights cannot take over"):
        host.training.trainable_copy(model)


def test_full_weights_are_told_the_models_options():
    """Scale RoPE, the shifts of picture and sound: numbers that a network reads."""
    model, seen = tiny("sd15"), []
    model.model_options["transformer_options"]["rope_options"] = {"scale_x": 2.0}
    with students.student_of(model, students.FullWeights(), seed=0) as student:
        student.module.apply_model = lambda x, t, transformer_options, **_: seen.append(transformer_options) or x
        student.denoiser(noise(1, 4, 8, 8), torch.ones(1))
    assert seen[0]["rope_options"] == {"scale_x": 2.0}


def test_what_a_network_keeps_over_the_steps_of_a_sampling_stands_aside(caplog):
    """WanAnimate2Cache: of the weights that came first, and here teacher and student take turns."""
    model, seen = tiny("sd15"), []
    model.model_options["transformer_options"] |= {"animate2_cache": Cache(), "audio_embeds": 3}
    network = host.training.loaded(model)
    denoise = host.training.as_denoiser(network, model=model)
    network.apply_model = lambda x, t, transformer_options, **_: seen.append(transformer_options) or x
    denoise(noise(1, 4, 8, 8), torch.ones(1))
    del network.apply_model
    assert "animate2_cache" not in seen[0]
    assert seen[0]["audio_embeds"] == 3
    with caplog.at_level("INFO", logger="comfyui_fewstep"):
        host.following.require_followed(model, batch_of(model))
    assert "animate2_cache stands aside" in caplog.text
    assert "animate2_cache" in model.model_options["transformer_options"], "the MODEL keeps its own"


@pytest.mark.parametrize("kind", kinds("flux"))
def test_a_student_of_full_weights_draws_as_it_was_trained_with_the_models_options(kind):
    model = tiny(kind)
    options = {"scale_x": 1.3, "shift_x": 0.0, "scale_y": 1.3, "shift_y": 0.0, "scale_t": 1.0, "shift_t": 0.0}
    model.set_model_rope_options(*options.values())
    made = host.training.model_from(host.training.trainable_copy(model), like=model)
    x, prompt = noise(1, 16, 4, 6), conditioning(kind)
    wanted = hosts_x0(model, x, 0.6, prompt)
    torch.testing.assert_close(hosts_x0(made, x, 0.6, prompt), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hosts_x0(tiny(kind), x, 0.6, prompt), wanted, atol=1e-2), "the options count"
    made.model_options["transformer_options"]["rope_options"] = {}
    assert model.model_options["transformer_options"]["rope_options"] == options, "and are the model's own"


# --- attention without a backward ------------------------------------------------------------------------------------


@torch.library.custom_op("fewstep_test::sageattn", mutates_args=())
def sageattn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Of a kernel library, without an autograd formula: (B, H, L, D) each."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v


def detached(q, k, v):
    """As those kernels that write into memory of their own: no error, and no gradient."""
    return sageattn(q.detach(), k.detach(), v.detach())


KERNELS = pytest.mark.parametrize("kernel", [sageattn, detached], ids=["no formula", "detached"])


def attention_by(kernel):
    def attention_sage(q, k, v, heads, mask=None, *args, **kwargs):
        q, k, v = (value.unflatten(-1, (heads, -1)).transpose(1, 2) for value in (q, k, v))
        return kernel(q, k, v).transpose(1, 2).flatten(2)

    return attention_sage


def chosen_by_the_host(monkeypatch, kernel):
    """As --use-sage-attention does, or a pack that puts its own in every module's place."""
    monkeypatch.setattr(ATTENTION, "optimized_attention", attention_by(kernel))
    monkeypatch.setattr(ATTENTION, "optimized_attention_masked", attention_by(kernel))
    return tiny("sd15")


def chosen_by_the_model(kernel):
    model = tiny("sd15")
    own = attention_by(kernel)
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: own(
        *args, **{k: v for k, v in kwargs.items() if k != "transformer_options"}
    )
    return model


def gradients(model):
    x = noise(2, 4, 8, 8)
    inputs = host.inputs.condition_for_training(model, conditioning("sd15", batch=2), latents=x, name="positive")
    return of_lora(model, LoRAOptions(rank=2, layers=LoRALayers.ATTENTION), x, inputs)[1]


@KERNELS
def test_attention_that_the_host_was_started_with_stands_aside_and_is_back(monkeypatch, kernel):
    wanted = gradients(tiny("sd15"))
    model = chosen_by_the_host(monkeypatch, kernel)
    own = ATTENTION.optimized_attention
    assert cosine(gradients(model), wanted) == pytest.approx(1.0, abs=1e-5)
    assert ATTENTION.optimized_attention is own
    x = noise(2, 4, 8, 8)
    batch = batch_of(model)
    with students.student_of(model, students.FullWeights(), seed=0) as student:
        student.writes_in_place = probe_writes_in_place(student, batch)
        with student.autograd():
            student.denoiser(x, torch.ones(2), **batch.condition).sum().backward()
        silent = [n for n, p in student.module.named_parameters() if ".to_q." in n and not p.grad.any()]
    assert silent == []


def test_attention_is_replaced_under_any_name_and_a_function_that_only_has_the_name_stays(monkeypatch):
    """The host's MMDiT has an optimized_attention of its own, with other arguments."""
    kernel, module = attention_by(detached), types.ModuleType("of_a_network")
    named = module.optimized_attention = types.FunctionType(attention_by.__code__, vars(module))
    module.mine = kernel
    monkeypatch.setitem(sys.modules, "of_a_network", module)
    monkeypatch.setattr(ATTENTION, "optimized_attention", kernel)
    with host.backward.possible():
        assert module.mine is ATTENTION.attention_pytorch
        assert module.optimized_attention is named
    assert module.mine is kernel


@pytest.mark.skipif(not HAS_OVERRIDE, reason="in this host a MODEL has no attention of its own")
@KERNELS
def test_attention_that_a_node_gave_the_model_stands_aside(kernel, caplog):
    model = chosen_by_the_model(kernel)
    assert cosine(gradients(model), gradients(tiny("sd15"))) == pytest.approx(1.0, abs=1e-5)
    with caplog.at_level("INFO", logger="comfyui_fewstep"):
        host.following.require_followed(model, batch_of(model))
    assert "optimized_attention_override (chosen_by_the_model of test_carried) stands aside" in caplog.text


@pytest.mark.skipif(not HAS_OVERRIDE, reason="in this host a MODEL has no attention of its own")
def test_attention_of_the_models_own_that_means_something_else_is_refused():
    model = chosen_by_the_model(lambda q, k, v: 3.0 * sageattn(q, k, v))
    with pytest.raises(ValueError, match=r"optimized_attention_override \(.*its attention is another, by \d+ percent"):
        host.following.require_followed(model, batch_of(model))


@KERNELS
def test_attention_that_a_pack_put_in_torchs_place_stands_aside(monkeypatch, kernel):
    wanted = gradients(tiny("sd15"))
    monkeypatch.setattr(ATTENTION, "optimized_attention", ATTENTION.attention_pytorch)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, *args, **kwargs: kernel(q, k, v)
    )
    assert cosine(gradients(tiny("sd15")), wanted) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("options", [LoRAOptions(rank=2), students.FullWeights()], ids=["LoRA", "full weights"])
def test_what_still_has_no_backward_is_found_and_named(options, monkeypatch):
    """A kernel under a name of the host's own, as no list can know: the probe finds it."""
    model = tiny("sd15")
    own = attention_by(detached)
    own.__name__ = "attention_pytorch"
    monkeypatch.setattr(ATTENTION, "optimized_attention", own)
    if isinstance(options, LoRAOptions):
        model.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    with students.student_of(model, options, seed=0) as student, pytest.raises(ValueError) as said:
        student.require_gradients(batch_of(model))
    assert re.search(r"to_q.* would never learn, nor perhaps \d+ other", str(said.value))
    if isinstance(options, LoRAOptions):
        assert "Into the network are wired attn1_patch (test_what_still_has" in str(said.value)
