"""The lists that authors and ComfyUI's templates publish for every recipe, as numbers."""

SPACED = {n: [round(1000 - 1000 * k / n) - 1 for k in range(n)] for n in (1, 2, 4, 8)}
LCM = {
    2: [999, 499],
    4: [999, 759, 499, 259],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
    16: [999, 939, 879, 819, 759, 699, 639, 579, 499, 439, 379, 319, 259, 199, 139, 79],
}
TIMESTEPS = {
    "LCM or LCM-LoRA, 4 steps": LCM[4],
    "LCM or LCM-LoRA, 8 steps": LCM[8],
    "SDXL-Lightning, 1 step": [999],
    "SDXL-Lightning, 2 steps": [999, 499],
    "SDXL-Lightning, 4 steps": [999, 749, 499, 249],
    "SDXL-Lightning, 8 steps": [999, 874, 749, 624, 499, 374, 249, 124],
    "SD- or SDXL-Turbo, 1 step": [999],
    "SD- or SDXL-Turbo, 2 steps": [999, 899],
    "SD- or SDXL-Turbo, 4 steps": [999, 899, 799, 699],
    "Hyper-SD LoRA, 2 steps": SPACED[2],
    "Hyper-SD LoRA, 4 steps": SPACED[4],
    "Hyper-SD LoRA, 8 steps": SPACED[8],
    "Hyper-SD CFG LoRA, 8 steps": SPACED[8],
    "Hyper-SD CFG LoRA, 12 steps": [999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82],
    "Hyper-SD unified LoRA, 1 step": [999],
    "Hyper-SD UNet, 1 step": [800],
    "DMD2, 4 steps": [999, 749, 499, 249],
    "DMD2, 1 step": [399],
    "TCD-LoRA, 4 steps": LCM[4],
    **{f"PCM small-CFG LoRA, {n} steps": LCM[n] for n in (2, 4, 8, 16)},
    **{f"PCM normal-CFG LoRA, {n} steps": LCM[n] for n in (4, 8, 16)},
    "PCM LCM-like LoRA, 4 steps": LCM[4],
    **{f"{kind}-Turbo, {n} steps (model card's list)": SPACED[n] for kind in ("SD", "SDXL") for n in (2, 4)},
}
LTX = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
BENT_8_BY_3 = [1.0, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3]
# The demo model's own shift is 1. Flow lists as diffusers' FlowMatchEulerDiscreteScheduler and the sources compute them.
SIGMAS = {
    "FLUX.1 schnell, 1 step": [1.0],
    "FLUX.1 schnell, 4 steps": [1.0, 0.75, 0.5, 0.25],
    "Hyper-FLUX LoRA, 8 steps": [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    "FLUX.1 Turbo Alpha LoRA, 8 steps": [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    "Hyper-FLUX LoRA, 16 steps": [1 - k / 16 for k in range(16)],
    "Qwen-Image-Lightning, 4 steps": [1.0, 0.9, 0.75, 0.5],
    "Qwen-Image-Lightning, 8 steps": BENT_8_BY_3,
    **{
        name: LTX
        for name in (
            "LTX-Video distilled, 8 steps",
            "LTX-2 or 2.3 distilled, stage 1, 8 steps",
            "LTX-2.5 distilled, stage 1, 8 steps",
        )
    },
    "LTX-2 or 2.3 distilled, stage 2, 3 steps": [0.909375, 0.725, 0.421875],
    "LTX-2.5 distilled, stage 2, 3 steps": [0.909375, 0.725, 0.421875],
    "MiniMax H3 Turbo LoRA, 4 steps": [1.0, 0.947368, 0.857143, 0.666667],
    "MiniMax H3 Turbo LoRA, 8 steps": [1.0, 0.976744, 0.947368, 0.909091, 0.857143, 0.782609, 0.666667, 0.461538],
    "MiniMax H3 Turbo LoRA of 544p, 4 steps": [1.0, 0.972973, 0.923077, 0.8],
    "MiniMax H3 HyperFlow LoRA, 8 steps": [
        *(1.0, 0.9939097854, 0.9842874953, 0.9660637197, 0.9230769231, 0.8349423898, 0.6968520491, 0.4687533149)
    ],
    "Z-Image-Turbo, 8 steps": BENT_8_BY_3,
    "Z-Image Fun distill LoRA, 2 steps": [1.0, 0.75],
    "Z-Image Fun distill LoRA, 4 steps": [1.0, 0.9, 0.75, 0.5],
    "Z-Image Fun distill LoRA, 8 steps": BENT_8_BY_3,
    "Krea 2 Turbo distill LoRA, 4 steps": [1.0, 0.904531, 0.759511, 0.512844],
    "Qwen-Image 2.1 Viggle turbo, 6 steps": [
        1.0,
        0.967754,
        0.933358,
        0.857192,
        0.666756,
        0.400096,
    ],
    "Qwen-Image 2.1 Viggle turbo, 4 steps": [1.0, 0.857192, 0.666756, 0.400096],
    "Qwen-Image 2.1 Lightning, 4 steps": [1.0, 0.857192, 0.666756, 0.400096],
    "ACE-Step 1.5 turbo, 8 steps": BENT_8_BY_3,
    "Wan 2.1 or 2.2 lightx2v, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "Wan 2.2 lightx2v, image to video, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "FastWan, 3 steps": [1.0, 0.757, 0.522],
    "Krea 2 Turbo, 8 steps": [1.0, 0.956724, 0.904531, 0.840349, 0.759511, 0.654567, 0.512844, 0.310901],
    "Qwen-Image-Lightning, 4 steps (shift 3.1, ComfyUI's templates)": [1.0, 0.902913, 0.756098, 0.508197],
    "Qwen-Image-Lightning, 8 steps (shift 3.1, ComfyUI's templates)": [
        *(1.0, 0.955947, 0.902913, 0.837838, 0.756098, 0.650350, 0.508197, 0.306931)
    ],
    "Qwen-Image 2.1 Turbo, 8 steps": [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568],
    "FLUX.2 klein, 4 steps": [1.0, 0.967384, 0.908144, 0.7672],
    "FLUX.2 dev Turbo LoRA, 8 steps": [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031],
    "Stable Audio 3, 8 steps": [1.0, 0.994376, 0.98448, 0.957912, 0.890903, 0.745547, 0.512497, 0.273885],
    "SD3.5-Large-Turbo, 4 steps": [1.0, 0.857692, 0.602151, 0.008929],
    "MiniMax H3 Turbo LoRA, 4 steps (res_multistep at shift 12, ComfyUI's templates)": [1.0, 0.972973, 0.923077, 0.8],
    "MiniMax H3 Turbo LoRA, 6 steps (res_multistep at shift 12, ComfyUI's templates)": [
        *(1.0, 0.983607, 0.96, 0.923077, 0.857143, 0.705882)
    ],
    **dict.fromkeys(
        (
            "MiniMax H3 Turbo LoRA, 8 steps (res_multistep at shift 12, ComfyUI's templates)",
            "MiniMax H3 Turbo LoRA of 544p, 8 steps",
            "MiniMax H3 PDD LoRA, 8 steps",
            "FastH3 OmniRef, 8 steps (ComfyUI's templates)",
        ),
        (1.0, 0.988235, 0.972973, 0.952381, 0.923077, 0.878049, 0.8, 0.631579),
    ),
    **dict.fromkeys(
        ("FastH3, 8 steps", "FastH3, 8 steps (res_multistep, ComfyUI's templates)"),
        (1.0, 0.985915, 0.967742, 0.943396, 0.909091, 0.857143, 0.769231, 0.588235),
    ),
    **dict.fromkeys(
        (
            "LTX-2.3 distilled, stage 2, 3 steps (from 0.85, ComfyUI's templates)",
            "LTX-2.5 distilled, stage 2, 3 steps (ancestral from 0.85, ComfyUI's templates)",
        ),
        (0.85, 0.725, 0.4219),
    ),
    **dict.fromkeys(
        (
            "LTX-2 distilled, stage 2, 3 steps (gradient_estimation, ComfyUI's templates)",
            "LTX-2 distilled, stage 2, 3 steps (ancestral, ComfyUI's templates)",
        ),
        (0.909375, 0.725, 0.421875),
    ),
    "Z-Image-Turbo, 8 steps (res_multistep, ComfyUI's templates)": BENT_8_BY_3,
    "Qwen-Image 2512 Turbo LoRA, 2 steps": [1.0, 0.75],
    "FLUX.2 dev Turbo LoRA, 8 steps (shifted once more, diffusers)": [
        *(1.0, 0.947394, 0.882484, 0.800272, 0.692818, 0.546192, 0.334673, 0.002986)
    ],
    "FLUX.2 dev Turbo LoRA, 8 steps (even, guidance 4, ComfyUI's templates)": [
        *(1.0, 0.985426, 0.966641, 0.941515, 0.906183, 0.852842, 0.763015, 0.579807)
    ],
    "FLUX.3 klein, 16 steps": [
        *(1.0, 0.990472, 0.979802, 0.967773, 0.954107, 0.938446, 0.920319, 0.899092),
        *(0.873897, 0.843505, 0.806126, 0.759036, 0.697885, 0.615271, 0.497487, 0.316005),
    ],
    "Anima turbo LoRA, 8 steps": BENT_8_BY_3,
    "ERNIE-Image turbo, 8 steps (shift 3, ComfyUI's templates)": BENT_8_BY_3,
    "ERNIE-Image turbo, 8 steps (shift 4, base model's scheduler)": [
        *(1.0, 0.965517, 0.923077, 0.869565, 0.8, 0.705882, 0.571429, 0.363636)
    ],
    "HiDream-I1 dev, 28 steps": [
        *(1.0, 0.99367, 0.986926, 0.979726, 0.972023, 0.963761, 0.954878, 0.945301, 0.934945, 0.923711),
        *(0.911483, 0.898123, 0.883465, 0.86731, 0.849419, 0.829493, 0.807166, 0.781976, 0.753333, 0.720477),
        *(0.682403, 0.637762, 0.584694, 0.520563, 0.441509, 0.341637, 0.211475, 0.034783),
    ],
    "HiDream-I1 fast, 16 steps": [
        *(1.0, 0.976817, 0.95138, 0.923343, 0.892285, 0.857692, 0.818923, 0.775174),
        *(0.725417, 0.668327, 0.602151, 0.524533, 0.432225, 0.320621, 0.182965, 0.008929),
    ],
    "HiDream-O1 dev, 28 steps": [
        *(1.0, 0.987381, 0.974108, 0.960129, 0.945387, 0.929818, 0.913349, 0.8959, 0.877382, 0.857692),
        *(0.836717, 0.814325, 0.790368, 0.764677, 0.737056, 0.707278, 0.675082, 0.64016, 0.602151, 0.560625),
        *(0.515072, 0.464876, 0.409289, 0.347393, 0.278049, 0.199827, 0.110906, 0.008929),
    ],
    "Hyper-SD3 LoRA, 4 steps": [1.0, 0.857692, 0.602151, 0.008929],
    "Hyper-SD3 LoRA, 8 steps": [1.0, 0.947543, 0.882788, 0.800837, 0.693793, 0.548046, 0.337972, 0.008929],
    "Hyper-SD3 LoRA, 16 steps": [
        *(1.0, 0.976817, 0.95138, 0.923343, 0.892285, 0.857692, 0.818923, 0.775174),
        *(0.725417, 0.668327, 0.602151, 0.524533, 0.432225, 0.320621, 0.182965, 0.008929),
    ],
    "Hyper-SD3 LoRA, 4 steps (even)": [1.0, 0.9, 0.75, 0.5],
    "Hyper-SD3 LoRA, 8 steps (even)": BENT_8_BY_3,
    "Hyper-SD3 LoRA, 16 steps (even)": [
        *(1.0, 0.978261, 0.954545, 0.928571, 0.9, 0.868421, 0.833333, 0.794118),
        *(0.75, 0.7, 0.642857, 0.576923, 0.5, 0.409091, 0.3, 0.166667),
    ],
    "Mage-Flow turbo, 4 steps": [1.0, 0.947368, 0.857143, 0.666667],
    "Lens turbo, 4 steps": [1.0, 0.949195, 0.861643, 0.67489],
    "MOSS-Image 4-step LoRA, 4 steps": [1.0, 0.909707, 0.717317, 0.024414],
    "HaDeS MOSS Turbo LoRA, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "HaDeS MOSS Turbo, 8 steps": [1.0, 0.972222, 0.9375, 0.892857, 0.833333, 0.75, 0.625, 0.416667],
    "PiD, 4 steps": [0.999, 0.866, 0.634, 0.342],
    "PiD, 4 steps (shift 1.5, ComfyUI's templates)": [1.0, 0.818182, 0.6, 0.333333],
    "Marigold v2, 1 step": [0.5],
    "LTX-2.5 distilled, stage 1, 8 steps (first and last frame: Euler, ComfyUI's templates)": LTX,
    "LTX-2 distilled, stage 1, 8 steps (ancestral, ComfyUI's templates)": LTX,
    **{
        f"Wan 2.1 lightx2v, 6 steps ({kind}ComfyUI's templates)": [1.0, 0.961538, 0.909091, 0.833333, 0.714286, 0.5]
        for kind in ("", "LCM, ")
    },
    "Wan 2.1 lightx2v, 6 steps (uni_pc at shift 8, ComfyUI's templates)": [
        *(1.0, 0.979592, 0.952381, 0.914286, 0.857143, 0.761905)
    ],
    "Wan 2.2 lightx2v, sound to video, 4 steps (uni_pc at shift 8, ComfyUI's templates)": [
        *(1.0, 0.969697, 0.923077, 0.842105)
    ],
    "Wan 2.2 Bernini-R, 6 steps (res_multistep at shift 8, ComfyUI's templates)": [
        *(1.0, 0.97561, 0.941176, 0.888889, 0.8, 0.615385)
    ],
    "Wan-Animate 2 distilled, 10 steps (LCM, ComfyUI's templates)": [
        *(1.0, 0.978261, 0.952381, 0.921053, 0.882353, 0.833333, 0.769231, 0.681818, 0.555556, 0.357143)
    ],
    "ChronoEdit distilled, 4 steps (uni_pc, ComfyUI's templates)": [1.0, 0.952381, 0.882353, 0.769231],
    "CausVid, 3 steps": [1.0, 0.757, 0.522],
    "CausVid LoRA, 3 steps (uni_pc at shift 8, ComfyUI's templates)": [1.0, 0.96, 0.888889],
    "CausVid LoRA, 4 steps (uni_pc at shift 8, ComfyUI's templates)": [1.0, 0.969697, 0.923077, 0.842105],
    "CausVid LoRA, 6 steps (uni_pc at shift 5, ComfyUI's templates)": [
        *(1.0, 0.967742, 0.925926, 0.869565, 0.789474, 0.666667)
    ],
    "Self-Forcing or Causal-Forcing, whole clips, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "rCM on Wan 2.1, 1 step": [0.987654],
    "rCM on Wan 2.1, 2 steps": [0.987654, 0.933781],
    "rCM on Wan 2.1, 3 steps": [0.987654, 0.933781, 0.852895],
    "rCM on Wan 2.1, 4 steps": [0.987654, 0.933781, 0.852895, 0.608979],
    "rCM on Wan 2.2, 4 steps": [0.995025, 0.933781, 0.852895, 0.608979],
    "HunyuanVideo 1.5 step-distilled, 8 steps": [1.0, 0.98, 0.954545, 0.921053, 0.875, 0.807692, 0.7, 0.5],
    "HunyuanVideo 1.5 step-distilled, 12 steps": [
        *(1.0, 0.987179, 0.972222, 0.954545, 0.933333, 0.907407, 0.875, 0.833333, 0.777778, 0.7, 0.583333, 0.388889)
    ],
    "HunyuanVideo 1.5 super-resolution, 6 steps": [1.0, 0.909091, 0.8, 0.666667, 0.5, 0.285714],
    "HunyuanVideo 1.5 super-resolution, 8 steps": [
        *(1.0, 0.933333, 0.857143, 0.769231, 0.666667, 0.545455, 0.4, 0.222222)
    ],
    "HunyuanVideo 1.5 lightx2v, 4 steps": [1.0, 0.9375, 0.833333, 0.625],
    "FastHunyuan, 6 steps": [1.0, 0.988372, 0.971429, 0.944444, 0.894737, 0.772727],
    "SeedVR2, 1 step": [1.0],
    "Stable Audio 3, 8 steps (even at shift 2, ComfyUI's templates)": [
        *(1.0, 0.933333, 0.857143, 0.769231, 0.666667, 0.545455, 0.4, 0.222222)
    ],
}
