"""The w-embedding inside the host's UNet against diffusers' UNet2DConditionModel on the same weights."""

import uuid

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from safetensors.torch import save_file

import_host()

import comfy.model_patcher
import comfy.utils
import folder_paths
from comfyui_fewstep.nodes.demo import digits_model
from comfyui_fewstep.nodes.sampling import guidance
from comfyui_fewstep.samplers.guidance_embedding import w_embedding
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel

CPU = torch.device("cpu")
SHAPES = {"SD1.5": {}, "SDXL": {"linear": True}}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12,
}


def diffusers_unet(linear):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=32,
        time_cond_proj_dim=16,
        use_linear_projection=linear,
        **(SDXL if linear else {}),
    ).eval()


def labels_for(theirs, linear, generator):
    """SDXL's class vector for both: the pooled text beside the sinusoids of two sizes."""
    if not linear:
        return {}, {}
    text, ids = torch.randn(2, 4, generator=generator), torch.tensor([[512.0, 768.0], [64.0, 0.0]])
    y = torch.cat([text, theirs.add_time_proj(ids.flatten()).reshape(2, -1)], dim=1)
    return {"added_cond_kwargs": {"text_embeds": text, "time_ids": ids}}, {"y": y}


def host_model(weights, linear):
    """The host's own UNet of the same shape, loaded through the host's own key conversion, cond_proj dropped as it does."""
    config = digits_model.DigitConfig()
    config.unet_config |= {
        "num_heads": 2,
        "transformer_depth": [1, 0],
        "transformer_depth_output": [1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 8,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": linear,
        "num_classes": "sequential" if linear else None,
        "adm_in_channels": 12 if linear else None,
    }
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    converted = {names[name]: value for name, value in weights.items() if name in names}
    missed = set(weights) - set(names)
    assert missed == {"time_embedding.cond_proj.weight"}
    network = digits_model.DigitModel(config)
    network.diffusion_model.load_state_dict(converted)
    return comfy.model_patcher.ModelPatcher(network.eval(), load_device=CPU, offload_device=CPU)


@pytest.fixture
def put(tmp_path):
    """Puts a file of the given kind into one of the host's checkpoint folders and returns its name."""
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))

    def write(kind, tensors):
        name = f"{kind} {uuid.uuid4().hex}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name)
        return name

    return write


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_unet_with_guidance_equals_diffusers(shape, layout, dtype, put):
    linear = bool(SHAPES[shape])
    theirs = diffusers_unet(linear)
    if dtype is torch.float16:  # the same rounded weights on both sides
        theirs.time_embedding.cond_proj.weight.data = theirs.time_embedding.cond_proj.weight.data.half().float()
    weights = dict(theirs.state_dict())
    name = "time_embedding.cond_proj.weight" if not layout else f"{layout}time_embed.cond_proj.weight"
    file = put("lcm", {name: weights["time_embedding.cond_proj.weight"].to(dtype), "other": torch.ones(1)})
    plain = host_model(weights, linear)
    (model,) = guidance.GuidanceEmbedding().patch(plain, file, 7.5)
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    (labels, y), t = labels_for(theirs, linear, generator), torch.tensor([259.0, 999.0])
    w = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.full((2,), 6.5), embedding_dim=16)
    with torch.no_grad():
        expected = theirs(x, t, context, timestep_cond=w, **labels).sample
        model.patch_model()
        try:
            ours = model.model.diffusion_model(x, t, context=context, **y)
        finally:
            model.unpatch_model()
        without = plain.model.diffusion_model(x, t, context=context, **y)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (ours - without).abs().max() > 1e-3, "the scale matters, and the connected model is as it was"


@pytest.mark.parametrize("dim", [16, 256])
def test_w_is_embedded_as_diffusers_embeds_it(dim):
    scales = torch.tensor([1.0, 2.5, 8.0, 14.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1.0, embedding_dim=dim)
    torch.testing.assert_close(w_embedding(scales, dim=dim), theirs, atol=1e-5, rtol=1e-5)


def test_the_state_dict_keeps_its_names(put):
    theirs = diffusers_unet(False)
    plain = host_model(dict(theirs.state_dict()), False)
    before = set(plain.model.state_dict())
    file = put("lcm", {"time_embedding.cond_proj.weight": theirs.time_embedding.cond_proj.weight.data})
    (model,) = guidance.GuidanceEmbedding().patch(plain, file, 8.0)
    model.patch_model()
    assert set(model.model.state_dict()) == before, "LoRAs find the layers of the time embedding by name"
    model.unpatch_model()


@pytest.mark.parametrize("layer", ["a", "llm_cond_proj.weight"])
def test_a_file_without_it_is_named(layer, put):
    """Ideogram 4 has a layer of nearly that name."""
    file = put("lora", {layer: torch.ones(1)})
    with pytest.raises(ValueError, match=r"lora .*\.safetensors holds no guidance embedding"):
        guidance.GuidanceEmbedding().patch(None, file, 8.0)


def test_a_missing_file_is_named(put):
    with pytest.raises(ValueError, match=r"file is 'gone\.safetensors'; allowed are"):
        guidance.GuidanceEmbedding().patch(None, "gone.safetensors", 8.0)


def test_another_models_embedding_is_refused(put):
    file = put("sdxl", {"time_embedding.cond_proj.weight": torch.zeros(320, 256)})
    with pytest.raises(ValueError, match=r"shape \(320, 256\), but .* has 32 channels"):
        guidance.GuidanceEmbedding().patch(digits_model.load_teacher(), file, 8.0)
