"""Student Report on the digits: figures of pictures drawn by the host, several runs in one table, files, refusals."""

import csv
import json
import re

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()

import comfy.sample
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, host
from comfyui_fewstep.nodes.demo import digits
from comfyui_fewstep.nodes.distillation import distillation
from comfyui_fewstep.nodes.distillation.learning import methods, students
from comfyui_fewstep.nodes.distillation.reports import report
from comfyui_fewstep.nodes.distillation.reports.judging import Asked
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.nodes.sampling import samplers
from comfyui_fewstep.samplers.schedules import trailing_sigmas
from comfyui_fewstep.trainers.measures.clip_score import clip_score
from comfyui_fewstep.trainers.measures.report import Judges, Missing
from comfyui_fewstep.trainers.objective import perceptual
from comfyui_fewstep.trainers.runs import keeping
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from making_data import TRAINING, Cancelled, cancel_at
from transformers import CLIPConfig, CLIPModel

LPIPS = report._lpips
GIVEN = {"prompts": "3\n7", "side": 32, "seeds": 2, "seed": 5, "teacher_steps": 4, "teacher_cfg": 1.5}


@pytest.fixture
def demo(output, monkeypatch):
    """The digits, and no weights of judges anywhere."""
    monkeypatch.setattr(report, "_lpips", lambda device: Missing("no weights"))
    monkeypatch.setattr(report, "clip_score", lambda folder, **_: Missing("no weights"))
    teacher, vae, clip = digits.DemoTeacher().load()
    return {"teacher": teacher, "vae": vae, "clip": clip}


@torch.inference_mode()
def train(teacher, name, *, rank):
    latents, labels = digits.DigitsData().load()
    (method,) = methods.ProgressiveDistillation().make(
        start_steps=4, target_steps=2, iterations=1, weighting="constant", learning_rate=1e-3, guidance_scale=1.5
    )
    (lora,) = students.LoRAStudentNode().make(rank=rank, alpha=4.0, layers="linear")
    negative = digits.DigitPrompt().encode("")[0]
    distillation.Distill().distil(
        teacher,
        method=method,
        run_name=name,
        student=lora,
        latents=latents,
        positive=labels,
        negative=negative,
        **TRAINING,
    )


def written(demo, runs, **changed):
    return report.StudentReport().report(runs=runs, **{**demo, **GIVEN, **changed})


def test_several_runs_are_compared_in_one_table(demo, output):
    train(demo["teacher"], "one", rank=4)
    train(demo["teacher"], "two", rank=8)
    picture, table, page = written(demo, "one\ntwo")["result"]
    folder = output / "fewstep" / "runs" / "one" / "report"
    assert page == str(folder / "report.html")
    rows = list(csv.DictReader((folder / "figures.csv").open()))
    assert [(row["name"], row["steps"], float(row["forwards"])) for row in rows] == [
        ("teacher", "4", 8.0),
        ("one", "2", 2.0),
        ("two", "2", 2.0),
    ]
    assert all(float(row["seconds"]) > 0.0 and float(row["diversity"]) > 0.0 for row in rows)
    assert len(list((folder / "pictures").iterdir())) == 3 * 2 * 2
    said = json.loads((folder / "report.json").read_text())
    assert said["prompts"] == ["3", "7"]
    assert said["seeds"] == [5, 6]
    assert [model["settings"].get("student.rank") for model in said["models"]] == [None, 4, 8]
    assert "<tr><td>student.rank</td><td></td><td>4</td><td>8</td></tr>" in (folder / "report.html").read_text()
    assert "LPIPS: not measured: no weights" in said["notes"]
    assert len(table.splitlines()) == 2 + 3
    assert picture.shape == (1, 3 * 32, 4 * 32, 3)
    again = written(demo, "one\ntwo")
    assert torch.equal(again["result"][0], picture)


@pytest.mark.parametrize("prompts", ["", " \n"])
def test_without_prompts_a_few_are_drawn_that_the_text_encoder_knows(demo, output, prompts):
    train(demo["teacher"], "one", rank=4)
    written(demo, "one", prompts=prompts, seeds=1)
    said = json.loads((output / "fewstep" / "runs" / "one" / "report" / "report.json").read_text())
    assert said["prompts"] == ["0", "2", "4", "6"]


@pytest.mark.parametrize(
    "gone", [lambda run: keeping.renamed(run, "later"), RunFolder.delete], ids=["renamed", "deleted"]
)
@pytest.mark.parametrize(("works", "work"), [(Asked, "drawn"), (Judges, "of")], ids=["drawn", "judged"])
def test_a_run_that_goes_while_its_report_is_made_is_not_there_again(demo, output, monkeypatch, gone, works, work):
    train(demo["teacher"], "one", rank=4)
    runs, own = output / "fewstep" / "runs", getattr(works, work)

    def meanwhile(*given):
        made = own(*given)
        gone(RunFolder(runs, "one"))
        return made

    monkeypatch.setattr(works, work, meanwhile)
    page = written(demo, "one")["result"][2]
    folder = output / "fewstep" / "reports" / "one"
    assert page == str(folder / "report.html")
    assert json.loads((folder / "report.json").read_text())["prompts"] == ["3", "7"]
    assert not (runs / "one").exists()
    shown = re.findall(r'src="([^"]+)"', (folder / "report.html").read_text())
    assert shown
    assert all((folder / name).exists() for name in shown)


@pytest.mark.parametrize(
    "gone", [lambda run: keeping.renamed(run, "later"), RunFolder.delete], ids=["renamed", "deleted"]
)
@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_run_that_goes_while_pictures_are_written_is_not_there_again(demo, output, monkeypatch, gone, number):
    """A hundred in full size take a minute."""
    train(demo["teacher"], "one", rank=4)
    own, runs, pictures = report._png, output / "fewstep" / "runs", []

    def meanwhile(picture):
        if len(pictures) == number:
            gone(RunFolder(runs, "one"))
        pictures.append(own(picture))
        return pictures[-1]

    monkeypatch.setattr(report, "_png", meanwhile)
    page = written(demo, "one")["result"][2]
    folder = output / "fewstep" / "reports" / "one"
    assert page == str(folder / "report.html")
    assert not (runs / "one").exists()
    assert len(list((folder / "pictures").iterdir())) == 2 * 2 * 2


def test_a_connected_student_that_is_the_teacher_draws_what_the_teacher_draws(demo, output):
    sigmas = trailing_sigmas(4, table=host.models.noise_levels(host.models.model_sampling_of(demo["teacher"])))
    wired = {"student": demo["teacher"], "sampler": host.models.hosts_sampler("euler"), "sigmas": sigmas}
    encoded = [demo["clip"].encode_from_tokens_scheduled(digit) for digit in "37"]
    given = {"name": "mine", "positive": encoded, "prompts": "", "clip": None, "teacher_cfg": 1.0}
    assert written(demo, "", **wired, **given)["result"][2] == str(
        output / "fewstep" / "reports" / "mine" / "report.html"
    )
    folder = output / "fewstep" / "reports" / "mine"
    rows = list(csv.DictReader((folder / "figures.csv").open()))
    assert [(row["name"], row["forwards"]) for row in rows] == [("teacher", "4.0"), ("connected student", "4.0")]
    assert rows[1]["psnr"] == "100.0"
    assert rows[0]["diversity"] == rows[1]["diversity"]
    told = json.loads((folder / "report.json").read_text())
    assert told["prompts"] == ["prompt 1", "prompt 2"]
    assert told["models"][1]["psnr"] == 100.0, "which null would say was not measured"


def wired_teacher(demo):
    sigmas = trailing_sigmas(2, table=host.models.noise_levels(host.models.model_sampling_of(demo["teacher"])))
    return {"student": demo["teacher"], "sampler": host.models.hosts_sampler("euler"), "sigmas": sigmas}


@pytest.mark.parametrize("broken", ["truncated", "no processor", "vgg"])
def test_weights_of_a_judge_that_cannot_be_read_are_named_and_the_report_is_written(broken, demo, output, monkeypatch):
    place = output / "clip"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(report, "clip_score", clip_score)
    monkeypatch.setattr(folders, "clip_score_folder", lambda: place)
    if broken == "vgg":
        monkeypatch.setattr(report, "require_lpips", lambda: None)
        monkeypatch.setattr(report, "_lpips", LPIPS)
        monkeypatch.setattr(report, "lpips_distance", lambda *_, **__: perceptual._read(place / "vgg.pth"))
    else:
        config = CLIPConfig(
            text_config={**sizes, "vocab_size": 64}, vision_config={**sizes, "image_size": 32, "patch_size": 16}
        )
        CLIPModel(config).save_pretrained(place)
        if broken == "truncated":
            (place / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    written(demo, "", name="mine", **wired_teacher(demo))
    notes = json.loads((output / "fewstep" / "reports" / "mine" / "report.json").read_text())["notes"]
    if broken == "vgg":
        assert any(note.startswith(f"LPIPS: not measured: {place / 'vgg.pth'} is damaged") for note in notes)
    else:
        assert any(
            note.startswith(f"CLIP score: not measured: the weights of {place} cannot be read") for note in notes
        )


def test_a_judge_that_fails_loses_no_picture(demo, output, monkeypatch):
    def failing(device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(report, "_judges", failing)
    with pytest.raises(torch.OutOfMemoryError):
        written(demo, "", name="mine", **wired_teacher(demo))
    assert len(list((output / "fewstep" / "reports" / "mine" / "pictures").glob("*.png"))) == 2 * 2 * 2


@torch.inference_mode()
def test_fresh_noise_is_that_of_each_pictures_own_seed(demo, output):
    """What KSampler draws at that seed, so that pictures of two seeds share none."""
    model, sampler = demo["teacher"], samplers.LCMSampler().make()[0]
    sigmas = trailing_sigmas(4, table=host.models.noise_levels(host.models.model_sampling_of(model)))
    prompt = demo["clip"].encode_from_tokens_scheduled("3")
    wired = {"student": model, "sampler": sampler, "sigmas": sigmas, "name": "mine", "positive": [prompt]}
    given = {"prompts": "", "clip": None, "teacher_cfg": 1.0, "seed": 2**64 - 1}
    picture = written(demo, "", **wired, **given)["result"][0]
    empty = torch.zeros(1, *host.data.latent_shape(model, width=32, height=32))
    for column, seed in enumerate((2**64 - 1, 0)):
        noise = comfy.sample.prepare_noise(empty, seed)
        latents = comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, prompt, prompt, empty, disable_pbar=True, seed=seed
        )
        found = picture[0, 32:64, 32 * column : 32 * (column + 1)]
        torch.testing.assert_close(found, demo["vae"].decode(latents)[0].clamp(0.0, 1.0), atol=2e-3, rtol=0.0)


def test_what_cannot_be_reported_is_refused_before_anything_is_drawn(demo, output):
    wired = {"student": demo["teacher"], "sampler": host.models.hosts_sampler("euler"), "sigmas": torch.zeros(2)}
    for changed, message in (
        ({"runs": "gone"}, r"runs names 'gone', which is no finished run or student"),
        ({}, "runs is empty and no student is connected"),
        (wired, "name is empty, and runs begins with no run"),
        ({"name": "mine"}, "runs is empty and no student is connected"),
        ({"name": "mine", "student": demo["teacher"]}, "lacks sampler and sigmas"),
        ({"name": "mine", **wired, "side": 36}, "side is 36; this model wants multiples of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            written(demo, **{"runs": "", **changed})
    assert not (output / "fewstep" / "reports").exists()


def test_a_name_that_is_none_is_refused_before_the_training_whose_student_is_judged():
    validate = NODE_CLASS_MAPPINGS["FewStepStudentReport"].VALIDATE_INPUTS
    assert validate(name=[""]) is validate(name=[" mine "]) is validate(name="mine") is True
    assert "name of the report" in validate(name=["a/b"])


def test_a_cancel_is_heard_while_a_judge_looks(monkeypatch):
    looked = []
    monkeypatch.setattr(report, "require_lpips", lambda: None)
    monkeypatch.setattr(report, "lpips_distance", lambda *_, **__: lambda a, b: looked.append(1) or torch.zeros(1))
    cancel_at(monkeypatch, 3)
    with pytest.raises(Cancelled):
        LPIPS(torch.device("cpu"))(*[torch.zeros(5, 2, 2, 3)] * 2)
    assert len(looked) == 2


def test_a_cancel_is_heard_at_the_next_picture(demo, output, monkeypatch):
    wired = {"student": demo["teacher"], "sampler": None, "sigmas": torch.tensor([1.0, 0.0])}
    cancel_at(monkeypatch, 3)
    with pytest.raises(Cancelled):
        written(demo, "", name="mine", **{**wired, "sampler": host.models.hosts_sampler("euler")})
    assert not (output / "fewstep" / "reports").exists()
