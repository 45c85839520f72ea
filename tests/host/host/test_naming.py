"""A LoRA file's names: the host uses every key, and diffusers reads the same change into the layers of its own converters."""

import re
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.lora
import comfy.model_base
import comfy.supported_models
import comfy.utils
import current_architectures
from architectures import ALL
from architectures import tiny as of_old
from comfyui_fewstep.nodes import host
from comfyui_fewstep.nodes.host.files.naming import Naming, Precision
from comfyui_fewstep.trainers.students.adapters import LoRALayers, LowRank, adaptable_layers, product
from diffusers import loaders
from diffusers.loaders import single_file_utils as theirs


def flux_weights(weights):
    """Under the names of the original file. The converter divides single blocks by FLUX's own width: here by this one's."""
    named = {re.sub(r"(query|key)_norm.weight$", r"\1_norm.scale", name): value for name, value in weights.items()}
    fused = {name: value for name, value in named.items() if "single_blocks" in name and "linear1" in name}
    own = {name: value.new_zeros(7 * 3072, *value.shape[1:]) for name, value in fused.items()}
    found = theirs.convert_flux_transformer_checkpoint_to_diffusers(named | own)
    width = named["img_in.weight"].shape[0]
    for name, value in fused.items():
        block, end = name.split(".")[1], name.rpartition(".")[2]
        divided = value.split([width] * 3 + [4 * width])
        for part, rows in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), divided, strict=True):
            found[f"single_transformer_blocks.{block}.{part}.{end}"] = rows
    return found


def flux2_weights(weights):
    """With shift and scale at the end as diffusers' loader of LoRAs leaves them; its converter of whole models turns them."""
    found = theirs.convert_flux2_transformer_checkpoint_to_diffusers(weights)
    last = "norm_out.linear.weight"
    return {**found, last: torch.cat(found[last].chunk(2)[::-1])}


EVERY = {
    "flux": (loaders.FluxLoraLoaderMixin, flux_weights),
    "flux2": (loaders.Flux2LoraLoaderMixin, flux2_weights),
    "sd3": (loaders.SD3LoraLoaderMixin, theirs.convert_sd3_transformer_checkpoint_to_diffusers),
    "qwen_image": (loaders.QwenImageLoraLoaderMixin, lambda weights, **_: weights),
    "z_image": (loaders.ZImageLoraLoaderMixin, theirs.convert_z_image_transformer_checkpoint_to_diffusers),
    "wan": (loaders.WanLoraLoaderMixin, theirs.convert_wan_transformer_to_diffusers),
}


def drawn(model, layers=LoRALayers.ATTENTION):
    generator = torch.Generator().manual_seed(4)
    found = adaptable_layers(model.model.diffusion_model, layers)
    return {
        path: LowRank(
            torch.randn(2, *layer.weight.shape[1:], generator=generator),
            torch.randn(layer.weight.shape[0], 2, *[1] * (layer.weight.ndim - 2), generator=generator),
        )
        for path, layer in found.items()
    }


def changes(model, tensors):
    """What the host's own loader makes of a file, by the weight that it changes."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    clone = model.clone()
    clone.add_patches(comfy.lora.load_lora(tensors, known), 1.0)
    return {key: host.training._change(clone, key) for key in clone.patches}


@pytest.mark.parametrize("kind", current_architectures.kinds(*ALL))
@pytest.mark.parametrize("naming", list(Naming))
def test_the_host_reads_every_key_of_every_naming(kind, naming):
    """And every row of it: the names that it knows for FLUX.2 and Lumina 2 are of networks with other numbers of them."""
    model = ALL[kind].model()
    adapters = drawn(model, LoRALayers.LINEAR_AND_CONV)
    try:
        tensors = host.naming.named(model, adapters, naming=naming, precision=Precision.FLOAT32)
    except ValueError as refused:
        assert naming is Naming.DIFFUSERS
        assert not hasattr(comfy.utils, "flux_to_diffusers"), refused
        return
    found = changes(model, tensors)
    assert found.keys() == {f"diffusion_model.{path}.weight" for path in adapters}
    for path, adapter in adapters.items():
        torch.testing.assert_close(found[f"diffusion_model.{path}.weight"], product(adapter), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    not hasattr(comfy.utils, "flux_to_diffusers"), reason="this host knows no names of diffusers' transformers"
)
@pytest.mark.parametrize("layers", [LoRALayers.ATTENTION, LoRALayers.LINEAR])
@pytest.mark.parametrize("kind", EVERY)
def test_diffusers_reads_the_same_change(kind, layers):
    """Through its own loader's conversion, beside its own conversion of a whole model whose weights are the change."""
    loader, convert = EVERY[kind]
    model = current_architectures.tiny(kind)[0]
    adapters = drawn(model, layers)
    tensors = host.naming.named(model, adapters, naming=Naming.DIFFUSERS, precision=Precision.FLOAT32)
    read = loader.lora_state_dict(dict(tensors))
    read = {name.removeprefix("transformer."): value for name, value in read.items()}
    whole = {name: torch.zeros_like(value) for name, value in model.model.diffusion_model.state_dict().items()}
    whole |= {f"{path}.weight": product(adapter) for path, adapter in adapters.items()}
    wanted = {name: value for name, value in convert(whole).items() if value.any()}
    found = {name.removesuffix(".lora_A.weight") for name in read if name.endswith(".lora_A.weight")}
    assert {f"{name}.weight" for name in found} == wanted.keys()
    assert len(read) == 2 * len(found), "nothing is left over"
    for name in found:
        change = read[f"{name}.lora_B.weight"] @ read[f"{name}.lora_A.weight"]
        torch.testing.assert_close(change, wanted[f"{name}.weight"], atol=1e-5, rtol=1e-5)


def test_kohyas_names_for_sdxl_are_those_of_its_files_blocks():
    """As sd-scripts' SDXL: lora_unet_, the path in the original file with underscores; UNet parts input, middle and output."""
    model = of_old("sdxl")
    tensors = host.naming.named(model, drawn(model), naming=Naming.KOHYA, precision=Precision.FLOAT32)
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in tensors
    assert all(re.match(r"lora_unet_(input_blocks|middle_block|output_blocks)_\d+_", name) for name in tensors)
    others = host.naming.named(of_old("sd15"), drawn(of_old("sd15")), naming=Naming.KOHYA, precision=Precision.FLOAT32)
    assert all(re.match(r"lora_unet_(down_blocks|mid_block|up_blocks)_", name) for name in others)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_file_has_the_precision_that_was_chosen(precision):
    model = of_old("sd15")
    tensors = host.naming.named(model, drawn(model), naming=Naming.STUDENT, precision=precision)
    assert {value.dtype for value in tensors.values()} == {getattr(torch, precision.value)}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_of_a_unet_diffusers_reads_the_students_own_names(kind):
    model = of_old(kind)
    adapters = drawn(model, LoRALayers.LINEAR_AND_CONV)
    student, theirs = (
        host.naming.named(model, adapters, naming=naming, precision=Precision.FLOAT32)
        for naming in (Naming.STUDENT, Naming.DIFFUSERS)
    )
    assert student.keys() == theirs.keys()


def test_label_embeddings_have_kohyas_name():
    """The host knows them by diffusers' names too, which kohya's files never have."""
    model = of_old("sdxl")
    names = host.naming.lora_names(model, adaptable_layers(model.model.diffusion_model, LoRALayers.LINEAR))
    assert names["label_emb.0.0"] == "lora_unet_label_emb_0_0"


def test_layers_without_a_name_are_refused():
    with pytest.raises(ValueError, match=r"no name for 1 layers, no\.such\.layer first"):
        host.naming.lora_names(of_old("sd15"), ["no.such.layer", "middle_block.1.proj_in"])


def test_a_file_that_the_host_would_not_read_whole_is_refused(monkeypatch):
    model = of_old("sdxl")
    adapters, known = drawn(model), host.naming._known(model)
    fewer = {name: weight for name, weight in known.items() if "lora_unet_middle_block_" not in name}
    monkeypatch.setattr(host.naming, "_known", lambda _: fewer)
    with pytest.raises(ValueError, match=r"reads \d+ of the \d+ layers .* choose 'as the student'"):
        host.naming.named(model, adapters, naming=Naming.KOHYA, precision=Precision.FLOAT32)


def test_a_layer_that_is_divided_by_its_inputs_is_refused(monkeypatch):
    """No file of two factors could hold the part of one."""
    model = of_old("sd3")
    adapters = drawn(model)
    path = next(iter(adapters))
    parts = {f"transformer.{i}": (f"diffusion_model.{path}.weight", (1, 4 * i, 4)) for i in range(2)}
    monkeypatch.setattr(host.naming, "_known", lambda _: parts)
    with pytest.raises(ValueError, match=f"diffusers divides {path} by its inputs"):
        host.naming.named(model, adapters, naming=Naming.DIFFUSERS, precision=Precision.FLOAT32)


SAID = {
    ("SD15", "EPS"): ("stable-diffusion-v1", "sd_v1"),
    ("SD20", "EPS"): ("stable-diffusion-v2-512", "sd_v2"),
    ("SD20", "V_PREDICTION"): ("stable-diffusion-v2-768-v", "sd_v2"),
    ("SDXL", "EPS"): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    ("SDXL", "V_PREDICTION"): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    ("SD3", "FLOW"): ("stable-diffusion-3", "sd3"),
    ("Flux", "FLUX"): ("flux-1-dev", "flux1"),
    ("FluxInpaint", "FLUX"): ("flux-1-dev", "flux1"),
    ("FluxSchnell", "FLOW"): ("flux-1-schnell", "flux1"),
    ("Flux2", "FLUX"): ("flux2", None),
    ("Chroma", "FLUX"): ("chroma", "chroma"),
    ("ChromaRadiance", "FLUX"): ("chroma_radiance", None),
    ("Lumina2", "FLOW"): ("lumina-2", "lumina2"),
    ("ZImage", "FLOW"): ("Z-Image", None),
    ("WAN21_T2V", "FLOW"): ("wan2.1", None),
}
"""By the host's configuration and prediction: the words of sd-scripts, else of musubi-tuner, else the host's own."""


@pytest.mark.parametrize(("config", "predicts"), SAID)
def test_a_file_says_what_it_is_for(config, predicts):
    kind = getattr(comfy.supported_models, config, None)
    if kind is None:
        pytest.skip(f"this host has no {config}")
    made = kind.__new__(kind)
    made.unet_config = kind.unet_config
    named = SimpleNamespace(model_config=made, model_type=getattr(comfy.model_base.ModelType, predicts))
    architecture, version = SAID[config, predicts]
    model = SimpleNamespace(model=named)
    assert host.naming.said_of_model(model, lora=False) == {"modelspec.architecture": architecture}
    of_base = {} if version is None else {"ss_base_model_version": version}
    assert host.naming.said_of_model(model, lora=True) == {"modelspec.architecture": f"{architecture}/lora"} | of_base


@pytest.mark.parametrize(("kind", "config"), [("sd15", "SD15"), ("sdxl", "SDXL"), ("sd3", "SD3")])
def test_a_loaded_model_has_such_a_configuration(kind, config):
    said = host.naming.said_of_model(of_old(kind), lora=False)["modelspec.architecture"]
    assert said in {architecture for (name, _), (architecture, _) in SAID.items() if name == config}
