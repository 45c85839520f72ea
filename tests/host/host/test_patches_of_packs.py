"""Patches as other packs make them: what a training step cannot do with them is refused in words that a person can read."""

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from architectures import tiny
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.host.editor.signals import Cancelled
from test_carried import batch_of, of_attention


def one_for_each_prompt(out, options):
    """As networks that packs have written anew for styles: the first sample of each prompt's, whatever else is in the batch."""
    prompts = len(options["cond_or_uncond"])
    return out[:prompts].repeat(len(out) // prompts, 1, 1)


def test_a_patch_that_sees_one_sample_of_a_batch_is_refused():
    """All samples of a batch learnt from the first one's answer."""
    model = of_attention(one_for_each_prompt)
    with pytest.raises(ValueError, match=r"one_for_each_prompt of .*acts on a sample by its place in the batch"):
        host.following.require_followed(model, batch_of(model))


def test_a_patch_that_sees_one_level_of_a_batch_is_refused():
    """A training step draws a level for each sample."""
    model = tiny("sd15")
    own = model.model.diffusion_model.forward

    def at_the_first_level(x, timesteps, *args, **kwargs):
        return own(x, timesteps, *args, **kwargs) * (1.0 + timesteps[0] / 1000.0)

    model.add_object_patch("diffusion_model.forward", at_the_first_level)
    with pytest.raises(ValueError, match=r"test_a_patch_that.*acts on a sample by its place in the batch"):
        host.following.require_followed(model, batch_of(model))


def fails(out, options):
    raise RuntimeError("output with shape [1, 8] does not match")


def test_a_patch_that_fails_is_named_with_its_words():
    """It was a traceback of the patch's own."""
    model = of_attention(fails)
    with pytest.raises(
        ValueError, match=r"\(fails of .*cannot be called there \(output with shape .*; remove that node"
    ):
        host.following.require_followed(model, batch_of(model))


@pytest.mark.parametrize("error", [Cancelled(), MemoryError(), torch.cuda.OutOfMemoryError(), ValueError("in words")])
def test_what_is_no_fault_of_a_patch_is_not_told_as_one(error):
    def raises(out, options):
        raise error

    model = of_attention(raises)
    with pytest.raises(type(error)) as said:
        host.following.require_followed(model, batch_of(model))
    assert said.value is error


class OfAPack(torch.nn.Module):
    """In a layer's place."""


def rewritten():
    """A MODEL whose network a pack has written anew: the classes of its layers, and numbers of its own."""
    model = tiny("sd15")
    for i in range(30):
        model.object_patches |= {f"diffusion_model.blocks.{i}.__class__": OfAPack, f"diffusion_model.blocks.{i}.idx": i}
    model.object_patches |= {"diffusion_model.forward": fails, "diffusion_model.style_dtype": torch.float64}
    return model


def test_what_a_pack_replaced_in_every_block_is_told_once():
    """A refusal named sixty places, and who a number belongs to."""
    told = host.carried.acting(rewritten())
    assert told == [
        f"diffusion_model.blocks.0.__class__ and 29 more ({host.carried.whose(OfAPack)})",
        "diffusion_model.blocks.0.idx and 30 more",
        f"diffusion_model.forward ({host.carried.whose(fails)})",
    ]
