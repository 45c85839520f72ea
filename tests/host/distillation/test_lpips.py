"""The distance lpips in the host: the library's own LPIPS by VGG16's file, through the host's VAE, which stays as it is.

The file holds random weights under torchvision's names; the heads are the library's.
"""

import os
import subprocess
import sys
import urllib.request
import uuid

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.latent_formats
from architectures import CPU, conditioning, noise_for, tiny
from comfyui_fewstep.launch import HOME
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.distillation import distillation, runs
from comfyui_fewstep.nodes.distillation import perceptual as host_perceptual
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.trainers.measures import digits
from comfyui_fewstep.trainers.objective import perceptual
from encoders import tiny_vae
from hosting import Failed, demo
from test_lora import TRAINING, assert_whole, output, snapshot  # noqa: F401 (a fixture)

lpips = pytest.importorskip("lpips", reason="pip install --no-deps lpips to run these")

LAYERS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
"""Of torchvision's VGG16: the convolutions' numbers and their channels."""
PROGRESSIVE = {
    "start_steps": 2,
    "target_steps": 1,
    "weighting": "constant",
    "learning_rate": 1e-3,
    "guidance_scale": 1.5,
}


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    """A folder with the file where torchvision would have put it."""
    home = tmp_path_factory.mktemp("torch")
    generator, tensors, before = torch.Generator().manual_seed(0), {}, 3
    for number, channels in LAYERS.items():
        drawn = torch.randn(channels, before, 3, 3, generator=generator) * (2.0 / (9 * before)) ** 0.5
        tensors[f"features.{number}.weight"] = drawn
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        before = channels
    file = home / "hub" / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    torch.save(tensors, file)
    return home


@pytest.fixture
def weights(torch_home, monkeypatch):
    """The file's tensors, found by the pack; nothing may be downloaded, and pictures stay small."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("something is downloaded")

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(perceptual, "LEAST_SIDE", 32)
    return torch.load(perceptual.vgg_path(), weights_only=True)


def pictures(*, seed, size=40):
    return torch.rand(3, 3, size, size + 8, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def distil(model, vae, method, **changed):
    """As the graph runs it."""
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear")
    given = {
        "latents": {"samples": noise_for(model, seed=1, batch=8)},
        "positive": conditioning("sd15", seed=2),
        "negative": conditioning("sd15", seed=5),
        "run_name": uuid.uuid4().hex,
        "student": lora,
    }
    return distillation.Distill().distil(model, vae=vae, method=method, **{**given, **TRAINING, **changed})


def progressive(**changed):
    (method,) = methods.ProgressiveDistillation().make(
        **{**PROGRESSIVE, "iterations": 2, "distance": "lpips", **changed}
    )
    return method


# --- the distance ----------------------------------------------------------------------------------------------------


def test_it_is_the_librarys_own_with_the_weights_of_both_files(weights):
    before = torch.get_rng_state()
    network = perceptual._network()
    assert torch.equal(torch.get_rng_state(), before), "the weights that it was made with were drawn apart"
    assert torch.equal(network.net.slice1[0].weight, weights["features.0.weight"])
    assert torch.equal(network.net.slice5[-2].bias, weights["features.28.bias"])
    one, two = pictures(seed=1), pictures(seed=2)
    with pytest.warns(UserWarning, match="weight"):
        by_itself = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    by_itself.net.load_state_dict({k: weights[f"features.{k.split('.', 1)[1]}"] for k in by_itself.net.state_dict()})
    expected = by_itself(one, two, normalize=True).flatten().detach()
    measure = perceptual.lpips_distance(lambda latents: latents, device=CPU)
    found = measure(one, two)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(expected.min()) > 0.01
    assert torch.equal(measure(one, one), torch.zeros(3))


def test_where_no_channel_sees_anything_the_gradient_is_a_number(weights, monkeypatch):
    network = perceptual._network()
    network.net.slice1[2].bias.data[:] = -1e3
    monkeypatch.setattr(perceptual, "_network", lambda: network)
    one, two = pictures(seed=1).requires_grad_(), pictures(seed=2)
    perceptual.lpips_distance(lambda latents: latents, device=CPU)(one, two).sum().backward()
    assert one.grad.isfinite().all()


def test_the_gradient_is_the_distances_own_and_of_nothing_else(weights, monkeypatch):
    network = perceptual._network()
    monkeypatch.setattr(perceptual, "_network", lambda: network)
    measure = perceptual.lpips_distance(lambda latents: latents, device=CPU)
    one, two = pictures(seed=1).requires_grad_(), pictures(seed=2).requires_grad_()
    measure(one, two).sum().backward()
    assert two.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    along = one.grad / one.grad.norm()
    with torch.no_grad():
        ahead, behind = (measure(one + step * along, two).double().sum() for step in (1e-2, -1e-2))
    assert float(one.grad.norm()) == pytest.approx(float(ahead - behind) / 2e-2, rel=0.02)


# --- through the host's VAE ------------------------------------------------------------------------------------------


def kept(vae):
    network = vae.first_stage_model
    held = dict([*network.named_parameters(), *network.named_buffers()])
    return held, {name: value.clone() for name, value in held.items()}


def assert_kept(vae, before):
    held, _ = kept(vae)
    assert held.keys() == before[0].keys()
    assert all(held[name] is before[0][name] for name in held), "the host's own objects"
    assert all(torch.equal(held[name], before[1][name]) for name in held)
    assert not any(m._forward_hooks or m._backward_hooks for m in vae.first_stage_model.modules())


def test_pictures_are_the_hosts_and_their_gradient_is_theirs():
    model, vae = tiny("sd15"), tiny_vae()
    before = kept(vae)
    latents = noise_for(model, height=4, width=6).clone().requires_grad_()
    with torch.inference_mode(False):
        decode = host_perceptual.pictures_of(vae, model=model)
        seen = decode(latents)
        along = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1))
        (seen * along).sum().backward()
    with torch.inference_mode():
        expected = vae.decode(model.model.process_latent_out(latents.detach())).movedim(-1, 1)
    torch.testing.assert_close(seen.detach(), expected, rtol=1e-5, atol=1e-6)
    assert float(expected.std()) > 0.01
    step = 1e-2 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ahead, behind = ((decode(latents + sign * step).double() * along).sum() for sign in (1.0, -1.0))
    assert float((latents.grad * step).sum()) == pytest.approx(float(ahead - behind) / 2, rel=0.02)
    assert_kept(vae, before)


def test_a_latent_format_of_tensors_lets_gradients_pass():
    model = tiny("sd15")
    with torch.inference_mode():
        model.add_object_patch("latent_format", comfy.latent_formats.SDXL_Playground_2_5())
    latents = noise_for(model).clone().requires_grad_()
    host_perceptual.pictures_of(digits_model.DigitVAE(), model=model)(latents).sum().backward()
    assert float(latents.grad.abs().max()) > 0.0


@pytest.mark.parametrize("which", ["LoRA", "full"])
def test_model_and_vae_stay_whole(which, weights, output):  # noqa: F811
    model, vae = tiny("sd15"), tiny_vae()
    before, decoder = snapshot(model), kept(vae)
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers="linear_and_conv")
    student = lora if which == "LoRA" else students.FullWeights()
    _, losses, name, _ = distil(model, vae, progressive(), student=student, checkpoint_every=1, accumulation=2)
    assert 0.0 < losses["loss"][-1] < 10.0
    assert_whole(model, before)
    assert_kept(vae, decoder)
    assert len(list((output / "fewstep" / "runs" / name / "previews").glob("*.png"))) == 2


def test_digits_are_learnt_by_it(weights, output):  # noqa: F811
    """Through the demo's VAE: in one forward what guidance says. In 20 steps the loss falls."""
    data = digits.training_data().first(32)
    (method,) = methods.GuidanceDistillation().make(
        guidance_scale=6.0, iterations=20, learning_rate=2e-3, steps=4, weighting="constant", distance="lpips"
    )
    _, losses, _, _ = distil(
        digits_model.load_teacher(),
        digits_model.DigitVAE(),
        method,
        latents={"samples": data.x0},
        positive=digits_model.condition(data.condition["y"].argmax(dim=1)),
        negative=digits_model.prompt(""),
        student=students.FullWeights(),
        batch_size=8,
        log_every=1,
    )
    assert sum(losses["loss"][-6:]) < 0.9 * sum(losses["loss"][:6]), losses["loss"]


@pytest.mark.parametrize(
    ("node", "options"),
    [
        (methods.ConsistencyDistillation, {"guidance_scale": 3.0, "levels": 4}),
        (methods.ConsistencyTraining, {}),
    ],
)
def test_the_other_methods_take_it(node, options, weights, output):  # noqa: F811
    given = {"steps": 2, "iterations": 1, "learning_rate": 1e-3, "distance": "lpips"}
    (method,) = node().make(**given, **options)
    _, losses, _, _ = distil(tiny("sd15"), tiny_vae(), method, batch_size=2, log_every=1)
    assert 0.0 < losses["loss"][-1] < float("inf")


# --- what is missing -------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_before_any_work(weights, output, tmp_path, monkeypatch):  # noqa: F811
    def refused(vae, match):
        with pytest.raises(ValueError, match=match):
            distil(tiny("sd15"), vae, progressive())
        assert not (output / "fewstep").exists()

    refused(None, "distance is 'lpips', which compares pictures, but vae is not connected")
    with pytest.raises(ValueError, match="vae is not connected"):
        runs.WriteRun().write(None, "run", method=progressive(), prompt={}, unique_id="1")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lpips", None)
        refused(tiny_vae(), r"needs the Python packages lpips and torchvision .*pip install lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    refused(tiny_vae(), r"there is no .*empty.hub.checkpoints.vgg16-397923af\.pth\. Put torchvision's file")


@pytest.mark.parametrize("content", ["damaged", "object", "other"])
def test_a_wrong_file_is_named_and_nothing_in_it_is_executed(content, weights, output, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = perceptual.vgg_path()
    file.parent.mkdir(parents=True)
    if content == "damaged":
        file.write_bytes(b"no weights")
    else:
        torch.save(_Touch(tmp_path / "touched") if content == "object" else {"features.0.weight": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth (is damaged|has no features\.0\.weight of the shape)"):
        distil(tiny("sd15"), tiny_vae(), progressive())
    assert not (tmp_path / "touched").exists()


class _Touch:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_vae_without_gradient_is_refused(weights, output):  # noqa: F811
    class Deaf(digits_model.DigitVAE):
        def decode(self, samples):
            return super().decode(samples.detach())

    with pytest.raises(ValueError, match=r"the VAE \(Deaf\) decodes to \(1, 3, 32, 48\) without gradient"):
        distil(tiny("sd15"), Deaf(), progressive())


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_demo_is_trained_by_it_in_another_process(client, runs, name, torch_home):
    prompt = demo(
        name,
        FewStepDistill={"batch_size": 1},
        FewStepProgressiveDistillation={"start_steps": 2, "target_steps": 1, "iterations": 1, "distance": "lpips"},
    )
    (number,) = [key for key, node in prompt.items() if node["class_type"] == "FewStepDistill"]
    needed = {"FewStepDigitsData", "FewStepDemoTeacher", "FewStepDigitPrompt", "FewStepProgressiveDistillation"}
    needed |= {"FewStepFullWeightsStudent"}
    kept = {key: node for key, node in prompt.items() if node["class_type"] in needed}
    kept["write"] = {"class_type": "FewStepWriteRun", "inputs": prompt[number]["inputs"]}
    without = {**kept, "write": {**kept["write"], "inputs": {**kept["write"]["inputs"], "run_name": f"{name} without"}}}
    without["write"]["inputs"].pop("vae")
    with pytest.raises(Failed, match="vae is not connected"):
        client.run(without)
    assert not (runs / f"{name} without").exists()
    client.run(kept)
    environment = {**os.environ, "PYTHONPATH": str(HOME / "packages"), "TORCH_HOME": str(torch_home)}
    for module in ("commands.plan", "trainers"):
        command = [sys.executable, "-m", f"comfyui_fewstep.{module}", str(runs / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (runs / name / "student.safetensors").exists()
