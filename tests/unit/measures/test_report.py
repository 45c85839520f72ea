"""The report's figures in closed cases, and its page."""

import csv
import importlib.machinery
import io
import re
import sys
import types

import pytest
import torch
from comfyui_fewstep.trainers.measures.clip_score import _Scorer, clip_score
from comfyui_fewstep.trainers.measures.report import COLUMNS, Drawn, Judges, Missing, as_csv, as_markdown, diversity
from comfyui_fewstep.trainers.measures.report_page import page
from gpu import GPU, gpu


def drawn(name, pictures, **settings):
    return Drawn(name=name, steps=4, forwards=4.0, seconds=0.5, pictures=pictures, settings=settings)


def grey(*levels):
    """One prompt, a picture of 4 x 6 of each level."""
    return torch.tensor(levels).reshape(1, -1, 1, 1, 1).expand(1, len(levels), 4, 6, 3)


NONE = Judges(lpips=Missing("no weights"), clip_score=Missing("no weights"))


def test_psnr_of_known_pictures_is_exact():
    """A difference of 0.1 everywhere is 20 dB, one of 0.01 is 40 dB; the mean and the least are over pictures."""
    teacher, student = drawn("teacher", grey(0.5, 0.5)), drawn("student", grey(0.6, 0.49))
    first, second = NONE.of([teacher, student], None)
    assert (first.psnr, first.least_psnr) == (None, None)
    assert second.psnr == pytest.approx(30.0, abs=1e-3)
    assert second.least_psnr == pytest.approx(20.0, abs=1e-3)


def test_equal_pictures_have_no_diversity():
    assert diversity(grey(0.3, 0.3, 0.3)) == 0.0
    assert diversity(grey(0.2, 0.5)) == pytest.approx(0.3)
    assert diversity(grey(0.0, 0.3, 0.6)) == pytest.approx((0.3 + 0.3 + 0.6) / 3)
    assert diversity(grey(0.4)) is None, "one seed says nothing"


def test_diversity_of_pictures_on_a_mac():
    """Where a host keeps them with --gpu-only."""
    with gpu():
        assert diversity(grey(0.2, 0.5).to(GPU)) == pytest.approx(0.3)


def test_two_prompts_are_no_diversity():
    assert diversity(torch.cat([grey(0.1, 0.1), grey(0.9, 0.9)])) == 0.0


def test_diversity_is_the_mean_of_roots():
    """Of two prompts of which one varies from black to white: 0 and 1, not the root of their mean square."""
    assert diversity(torch.cat([grey(0.0, 0.0), grey(0.0, 1.0)])) == pytest.approx(0.5)


def test_judges_see_each_picture_with_its_own_prompt_and_partner():
    seen = []

    def agreement(pictures, texts):
        seen.append(list(texts))
        return pictures.flatten(1).mean(dim=1)

    judges = Judges(lpips=lambda a, b: (a - b).abs().flatten(1).mean(dim=1), clip_score=agreement)
    teacher = drawn("teacher", torch.cat([grey(0.1, 0.2), grey(0.3, 0.4)]))
    student = drawn("student", torch.cat([grey(0.2, 0.4), grey(0.3, 0.4)]))
    first, second = judges.of([teacher, student], ["a", "b"])
    assert seen == [["a", "a", "b", "b"]] * 2
    assert first.clip_score == pytest.approx(0.25)
    assert first.lpips is None
    assert second.lpips == pytest.approx((0.1 + 0.2) / 4)
    assert as_markdown([second]).endswith("| 0.075 | 0.325 | 0.15 |")
    assert judges.of([teacher, student], None)[1].clip_score is None
    assert NONE.of([teacher, student], ["a", "b"])[1].clip_score is None


def test_what_is_not_measured_is_said():
    assert NONE.told(["a"]) == ["LPIPS: not measured: no weights", "CLIP score: not measured: no weights"]
    one = Judges(lpips=Missing("no weights"), clip_score=lambda *_: torch.zeros(1))
    assert one.told(None)[1] == "CLIP score: not measured: the texts of the prompts are not known"
    assert one.told(["a"]) == ["LPIPS: not measured: no weights"]
    assert NONE.told(None) == NONE.told(["a"]), "once"


def test_a_bar_in_a_name_is_no_column():
    row = as_markdown(NONE.of([drawn("a|b", grey(0.5))], None)).splitlines()[-1]
    assert len(re.split(r"(?<!\\)\|", row)) == len(COLUMNS) + 2
    assert "a\\|b" in row


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_name_is_a_formula_in_a_table(name):
    (row,) = csv.DictReader(io.StringIO(as_csv(NONE.of([drawn(f"{name}.safetensors", grey(0.5))], None)), newline=""))
    assert row["name"] == f"'{name}.safetensors".replace("\r", " ")


def test_a_bar_in_a_name_is_itself_on_the_page():
    made = NONE.of([drawn("one|other", grey(0.5))], None)
    assert COLUMNS["model"](made[0]) == "one|other"


def test_the_table_and_the_figures_name_every_model():
    found = NONE.of([drawn("teacher", grey(0.5)), drawn("a, fast", grey(0.6))], None)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["name"] for row in rows] == ["teacher", "a, fast"]
    assert float(rows[1]["psnr"]) == pytest.approx(20.0, abs=1e-3)
    assert rows[1]["lpips"] == ""
    assert "| a, fast | 4 | 4 | 0.5 | 20.0 dB (20.0) | - | - | - |" in as_markdown(found)


def test_the_page_is_whole_by_itself_and_takes_no_word_for_markup():
    models = [
        drawn("teacher", grey(0.5)),
        drawn("<b>one</b>", grey(0.6), rank=8, seed=1),
        drawn("two", grey(0.6), rank=16, seed=1),
    ]
    html = page(
        NONE.of(models, None),
        models,
        title="A & B",
        prompts=["a <script>fox</script>"],
        seeds=[7],
        files={(m, 0, 0): f"pictures/{m}.png" for m in range(3)},
        notes=NONE.told(None),
    )
    assert "<script" not in html
    assert "&lt;script&gt;fox" in html
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == [f"pictures/{m}.png" for m in (0, 0, 1, 1, 2, 2)]
    assert "http" not in html
    assert 'alt="&lt;b&gt;one&lt;/b&gt;, a &lt;script&gt;fox&lt;/script&gt;, seed 7"' in html
    differing = html.split("Settings that differ")[1]
    assert "<td>rank</td><td>&quot;&quot;" not in differing
    assert "<tr><td>rank</td><td></td><td>8</td><td>16</td></tr>" in differing
    assert "seed" not in differing


def test_a_cancel_is_heard_before_each_pass_of_clip():
    passes = []

    class Stop(Exception):
        pass

    def heed():
        if len(passes) == 1:
            raise Stop

    class Network:
        device = torch.device("cpu")

        def __call__(self, *, count):
            passes.append(count)
            return types.SimpleNamespace(image_embeds=torch.ones(count, 2), text_embeds=torch.ones(count, 2))

    class Given(dict):
        def to(self, device):
            return self

    scorer = _Scorer(Network(), lambda *, images, **_: Given(count=len(images)), heed)
    with pytest.raises(Stop):
        scorer(torch.zeros(40, 2, 2, 3), ["a"] * 40)
    assert passes == [16]


def test_the_clip_score_is_a_hundred_times_the_cosine_and_never_below_0():
    """Hessel et al. 2021, equation 1, with w = 100; the pictures are given to it in 256 levels."""
    pictures, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]]).expand(3, 2)
    seen = {}

    class Network:
        device = torch.device("cpu")

        def __call__(self):
            return types.SimpleNamespace(image_embeds=pictures, text_embeds=texts)

    class Given(dict):
        def to(self, device):
            return self

    scorer = _Scorer(Network(), lambda **given: seen.update(given) or Given(), lambda: None)
    found = scorer(torch.full((3, 2, 2, 3), 0.5), ["a", "b", "c"])
    assert found.tolist() == pytest.approx([100.0, 60.0, 0.0])
    assert seen["text"] == ["a", "b", "c"]
    assert {int(level) for picture in seen["images"] for level in picture.flat} == {128}


@pytest.mark.parametrize("error", [ValueError("no docstring\n"), RuntimeError("nms"), ImportError("torchvision")])
def test_a_library_that_fails_as_it_is_imported_is_no_judge(error, tmp_path, monkeypatch):
    """By a Python without docstrings (-OO) transformers ended a report whose pictures were all drawn."""

    def refuse(name):
        raise error

    broken = types.ModuleType("transformers")
    broken.__spec__, broken.__getattr__ = importlib.machinery.ModuleSpec("transformers", None), refuse
    monkeypatch.setitem(sys.modules, "transformers", broken)
    found = clip_score(tmp_path, device=torch.device("cpu"))
    assert isinstance(found, Missing)
    kind, reason = type(error).__name__, str(error).strip()
    assert f"the Python package transformers cannot be used ({kind}: {reason}" in found.reason
