"""Tiny models of a current host whose linear layers are of a quantised format, and all the bytes that they are made of."""

import current_architectures
from comfyui_fewstep.benchmarks.architectures.quantised import comfy_quant, contents, formats

__all__ = ["contents", "formats", "tiny"]


def tiny(kind, form):
    """(MODEL of the format, noise, inputs, and the same MODEL with ordinary weights that hold the same values)"""
    _, x, inputs = current_architectures.tiny(kind)
    model, plain = comfy_quant(current_architectures.ALL[kind], form)
    return model, x, inputs, plain
