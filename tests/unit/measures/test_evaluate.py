import math

import pytest
import torch
from comfyui_fewstep.trainers.measures import charts
from comfyui_fewstep.trainers.measures.charts import curves_chart, loss_chart, picture_grid, quality_chart
from comfyui_fewstep.trainers.measures.digits import DigitClassifier, load_pictures, split, to_latents, to_pictures
from comfyui_fewstep.trainers.measures.evaluate import (
    DigitJudge,
    FeatureStatistics,
    Score,
    frechet_distance,
    psnr,
    table,
)


def statistics(mean, deviations):
    return FeatureStatistics(torch.tensor(mean).double(), torch.diag(torch.tensor(deviations).double() ** 2))


def test_frechet_distance_of_axis_aligned_gaussians():
    """Sum of squared differences of means and of standard deviations (Dowson and Landau 1982, for commuting covariances)."""
    a, b = statistics([0.0, 1.0], [1.0, 2.0]), statistics([3.0, 1.0], [2.0, 0.5])
    assert frechet_distance(a, b) == pytest.approx(9.0 + 1.0 + 2.25)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_the_statistics_are_the_unbiased_ones():
    """By hand: deviations -2, 0, 2 and -4, -2, 6 of three samples, over one less than three."""
    found = FeatureStatistics.of(torch.tensor([[0.0, 0.0], [2.0, 2.0], [4.0, 10.0]]))
    assert found.mean.tolist() == [2.0, 4.0]
    assert found.covariance.tolist() == [[4.0, 10.0], [10.0, 28.0]]


def test_frechet_distance_ignores_the_choice_of_axes():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 6, generator=generator), torch.randn(300, 6, generator=generator) * 2 + 1
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    plain = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    turned = frechet_distance(FeatureStatistics.of(a @ rotation), FeatureStatistics.of(b @ rotation))
    assert turned == pytest.approx(plain, rel=1e-5)
    assert plain == pytest.approx(frechet_distance(FeatureStatistics.of(b), FeatureStatistics.of(a)), rel=1e-9)


def test_psnr_of_equal_pictures_is_a_number():
    """A report's mean of it, and its JSON, want one."""
    assert psnr(torch.ones(2, 3), torch.ones(2, 3)) == 100.0


def test_curves_leave_out_what_is_no_number():
    drawn = curves_chart(
        {"a": {1: (math.nan, 0.1), 2: (0.5, 0.1)}, "b": {4: (math.inf, 0.0)}}, over="calls", value="distance"
    )
    assert torch.equal(drawn, curves_chart({"a": {2: (0.5, 0.1)}}, over="calls", value="distance"))
    with pytest.raises(ValueError, match="there is no distance to draw"):
        curves_chart({"a": {1: (math.nan, 0.1)}}, over="calls", value="distance")


def test_psnr_of_a_known_error():
    assert psnr(torch.full((2, 1, 4, 4), 0.6), torch.full((2, 1, 4, 4), 0.5)) == pytest.approx(20.0, abs=1e-4)


def test_the_judge_counts_what_was_asked_for():
    torch.manual_seed(0)
    classifier = DigitClassifier()
    classifier.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        classifier.biases["output"][[0, 9]] = -1e6  # so that there is a digit below and one above what it says
    pictures = torch.rand(20, 1, 8, 8)
    classifier.eval()
    said = classifier.classify(classifier.features(pictures)).argmax(dim=1)
    judge = DigitJudge(classifier, FeatureStatistics.of(classifier.features(pictures).detach()))
    asked = said.clone()
    asked[:4] += 1
    asked[4:5] -= 1
    given = {"model": "student", "steps": 4, "nfe": 4, "seconds": 2.0}
    score = judge.score(pictures, asked, reference=(pictures + 0.1), **given)
    assert score.psnr == pytest.approx(20.0, abs=1e-4)
    assert judge.score(pictures, asked, reference=None, **given).psnr is None, "of the reference itself"
    assert score.accuracy == pytest.approx(0.75)
    assert score.frechet == pytest.approx(0.0, abs=1e-6)
    assert score.seconds_per_picture == pytest.approx(0.1)


def test_latents_fold_pictures_without_loss():
    pictures = torch.rand(3, 1, 8, 8)
    latents = to_latents(pictures)
    assert latents.shape == (3, 4, 4, 4)
    torch.testing.assert_close(to_pictures(latents), pictures)


def test_the_split_is_whole_and_disjoint():
    kept, held_out = split(1797)
    assert len(held_out) == 359
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(1797))


SCORES = [
    Score(model=model, steps=steps, nfe=steps, frechet=f, accuracy=0.9, psnr=p, seconds_per_picture=0.001)
    for model, steps, f, p in (("teacher", 64, 5.0, None), ("teacher", 4, 50.0, 12.0), ("student", 4, 6.0, 20.0))
]


def test_the_table_has_a_row_for_each_score():
    lines = table(SCORES).splitlines()
    assert len(lines) == 2 + len(SCORES)
    assert lines[-1] == "| student | 4 | 4 | 6.00 | 0.900 | 20.0 dB | 1.00 |"
    assert "| - |" in lines[2]


LOGGED = [
    {"stage_name": "a", "iteration": 10, "loss": None},
    {"stage_name": "a", "iteration": 20, "loss": 1.0},
    {"stage_name": "a", "iteration": 30, "loss": 0.5},
    {"stage_name": "b", "iteration": 40, "loss": 0.4},
]
"""Of a run's lines what the chart needs."""


def test_the_loss_is_drawn_over_iterations_as_on_the_node(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "_render", drawn.append)
    loss_chart(LOGGED)
    (axis,) = drawn[0].axes
    lines = [(line.get_label(), line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines]
    assert lines == [("a", [20, 30], [1.0, 0.5]), ("b", [40], [0.4])]
    assert axis.get_xlabel() == "iteration"


def test_a_legend_of_many_long_names_is_drawn_whole(monkeypatch):
    drawn = []
    render = charts._render
    monkeypatch.setattr(charts, "_render", lambda figure: drawn.append(figure) or render(figure))
    curves_chart(
        {f"a rather long name of a student, number {k}": {4: (1.0, 0.1)} for k in range(40)}, over="", value=""
    )
    (figure,) = drawn
    (axis,) = figure.axes
    box = (axis.get_legend() or figure.legends[0]).get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert axis.get_window_extent().height > 400, "the curves are squeezed"


def test_charts_draw_something_in_range():
    rows = {"teacher": torch.rand(4, 8, 8, 3), "student": torch.rand(4, 8, 8, 3)}
    curves = {"teacher, DDIM": {1: (9.0, 0.5), 31: (0.1, 0.2)}, "student": {1: (1.0, 0.1)}}
    over = curves_chart(curves, over="calls", value="distance", beside="teacher")
    for chart in (quality_chart(SCORES), loss_chart(LOGGED), picture_grid(rows), over):
        assert chart.ndim == 3
        assert chart.shape[-1] == 3
        assert 0.0 <= chart.min() < chart.max() <= 1.0
        assert chart.std() > 0.02, "an empty canvas"


def test_the_digits_are_latents_of_mean_0_and_deviation_1():
    latents = to_latents(load_pictures()[0])
    assert (float(latents.mean()), float(latents.std())) == pytest.approx((0.0, 1.0), abs=1e-3)
