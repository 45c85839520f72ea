"""Distill Model on data nodes as the graph runs it, and what the tests of those share."""

import cancelling
import numpy as np
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.data import folder_data, training_data
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.trainers.storage.export import read_student
from PIL import Image

TRAINING = {
    "seed": 3,
    "batch_size": 4,
    "optimiser": "adam",
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "checkpoint_every": 20,
}
FOLDER = {"resolution": 64, "bucket_step": 16, "caption": "a picture", "without_caption": "use caption"}
FOLDER |= {"negative": "", "flip": False, "broken": "stop"}
PROMPTS = {"negative": "", "width": 48, "height": 32, "pictures_per_prompt": 3, "steps": 4, "cfg": 2.0}
PROMPTS |= {"sampler": "euler", "seed": 7, "batch_size": 2, "pairs": True}
LONG = " ".join(f"word{i}" for i in range(100))


def picture(path, width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).save(path)


def method_and_lora(*, iterations=4, layers="linear"):
    """With guidance baked in."""
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=4,
        target_steps=2,
        iterations=iterations,
        weighting="constant",
        learning_rate=1e-3,
        guidance_scale=1.5,
    )
    (lora,) = students.LoRAStudentNode().make(rank=4, alpha=4.0, layers=layers)
    return method, lora


@torch.inference_mode()
def distil(model, *, name, layers="linear", iterations=2, **inputs):
    """As the graph runs it."""
    method, lora = method_and_lora(iterations=iterations, layers=layers)
    given = {**TRAINING, "method": method, "student": lora, **inputs}
    return distillation.Distill().distil(model, run_name=name, **given)


def images(vae, clip, **changed):
    given = {"folder": "pictures", **FOLDER, "vae": vae, "clip": clip, **changed}
    return folder_data.ImageFolder().describe(**given)["result"][0]


def prompts(clip, text="a red fox\n\n a blue house \n", **changed):
    return training_data.TeacherPictures().describe(**{"prompts": text, **PROMPTS, "clip": clip, **changed})[0]


def run_folder(output, name):
    return output / "fewstep" / "runs" / name


def student_of(output, name):
    return read_student(run_folder(output, name) / "student.safetensors")[0]


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Cancelled(Exception):
    pass


def cancel_at(monkeypatch, call):
    cancelling.cancel_at(monkeypatch, call, Cancelled)
