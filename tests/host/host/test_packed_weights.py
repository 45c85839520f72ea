"""Full weights of a model whose layers keep bytes and unpack them themselves: a stand-in of the kind that loads GGUF files."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import conditioning, tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.distillation.learning import students
from torch import nn

STEP = 1.0 / 64.0


class Packed(nn.Linear):
    """Whole numbers from 0 to 255, and what a LoRA adds: in the weight while it is bytes, an ordinary layer else."""

    comfy_cast_weights = True

    def cast_bias_weight(self, input):
        weight = (torch.Tensor(self.weight).to(input) - 128.0) * STEP + self.added
        return weight, None if self.bias is None else self.bias.to(input)

    def forward(self, input):
        packed = not self.weight.is_floating_point()
        weight, bias = self.cast_bias_weight(input) if packed else (self.weight, self.bias)
        return nn.functional.linear(input, weight, bias)


def packed_like(layer, *, added):
    made = Packed(layer.in_features, layer.out_features, bias=layer.bias is not None)
    numbers = (layer.weight / STEP + 128.0).round().clamp(0, 255).to(torch.uint8)
    made.weight = nn.Parameter(numbers, requires_grad=False)
    made.bias = layer.bias
    made.added = added
    return made


@pytest.fixture
def model():
    """A MODEL whose attention has its queries in bytes, with a LoRA on one of them."""
    model = tiny("sd15")
    network = model.model.diffusion_model
    queries = [name for name, _ in network.named_modules() if name.endswith("to_q")]
    for i, name in enumerate(queries):
        parent = network.get_submodule(name.rpartition(".")[0])
        parent.to_q = packed_like(parent.to_q, added=0.1 if i == 0 else 0.0)
    return model


def answer(network, of):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = host.inputs.condition_for_training(of, conditioning("sd15"), latents=x, name="positive")
    return host.training.as_denoiser(network, model=of)(x, torch.full((1,), 3.0), **condition)


def test_a_copy_has_what_the_layers_unpack(model):
    with torch.no_grad():
        wanted = answer(host.training.loaded(model), model)
    copy = host.training.trainable_copy(model)
    assert {value.dtype for value in copy.diffusion_model.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(answer(copy, model), wanted, atol=1e-5, rtol=1e-5)
    assert model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q.weight.dtype is torch.uint8


def test_full_weights_learn_on_it(model):
    """It ended in "only Tensors of floating point dtype can require gradients"."""
    with students.student_of(model, students.FullWeights(), seed=0) as student:
        student.writes_in_place = True
        x = torch.randn(1, 4, 8, 8)
        condition = host.inputs.condition_for_training(model, conditioning("sd15"), latents=x, name="positive")
        with student.autograd():
            student.denoiser(x, torch.ones(1), **condition).sum().backward()
        queries = [value for name, value in student.module.named_parameters() if "to_q.weight" in name]
        assert queries
        assert all(value.grad is not None and value.grad.any() for value in queries)
