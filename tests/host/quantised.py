"""Models of a current host whose linear layers are of a quantised format, as files of that format load."""

import json

import current_architectures
import torch
from architectures import CPU


def formats():
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        return []
    return [
        name for name in ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise") if name in QUANT_ALGOS
    ]


def tiny(kind, form):
    """(MODEL of the format, noise, inputs, and the same MODEL with ordinary weights that hold the same values)"""
    import comfy.model_patcher
    import comfy.supported_models
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    plain, x, inputs = current_architectures.tiny(kind)
    architecture = current_architectures.ARCHITECTURES[kind]
    with torch.inference_mode():
        state = {name: value.clone() for name, value in plain.model.diffusion_model.state_dict().items()}
        for name, layer in plain.model.diffusion_model.named_modules():
            if isinstance(layer, torch.nn.Linear) and layer.in_features % 32 == 0 and layer.out_features % 32 == 0:
                layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
                quantised = QuantizedTensor.from_float(layer.weight.data, layout, scale="recalculate")
                state |= quantised.state_dict(f"{name}.weight")
                state[f"{name}.comfy_quant"] = torch.tensor(
                    list(json.dumps({"format": form}).encode()), dtype=torch.uint8
                )
                layer.weight.copy_(quantised.dequantize())
        config = getattr(comfy.supported_models, architecture.config)(dict(architecture.network))
        config.quant_config = {"mixed_ops": True}
        config.set_inference_dtype(torch.float32, torch.float32)
        network = config.get_model({}, "model.diffusion_model.").eval()
        missing, unexpected = network.diffusion_model.load_state_dict(state, strict=False)
        assert not missing
        assert not unexpected
    return comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU), x, inputs, plain


def contents(model):
    """The bytes of all weights, by name, with those that quantised ones are made of."""
    return {
        f"{name}.{part}": (value if part == "" else getattr(value, part)).detach().view(torch.uint8)
        for name, value in model.model.named_parameters()
        for part in (value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else [""])
        if (value if part == "" else getattr(value, part)).ndim
    }
