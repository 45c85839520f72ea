"""What a number of levels counts: on every grid those that are taught, each by the next one down."""

import json

import pytest
import torch
from comfyui_fewstep.trainers.methods import METHODS, read_method
from comfyui_fewstep.trainers.methods.consistency import ConsistencyOptions
from comfyui_fewstep.trainers.methods.consistency_training import ConsistencyTrainingOptions
from comfyui_fewstep.trainers.objective.consistency_function import spaced_levels, trained_levels
from comfyui_fewstep.trainers.objective.grid import Grid
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from gaussian import FAMILIES, table

VE = FAMILIES[0]
LEVELS = table(VE)
TEACHER = TeacherKind(family=VE, table=LEVELS)
CHOSEN = {"steps": 4, "iterations": 5, "learning_rate": 1e-4, "guidance_scale": 1.0}


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("count", [4, 17, 40, 500])
def test_levels_count_those_that_are_taught_on_every_grid(grid, count):
    """One more in all: the last is the model's smallest, which teaches and is not taught. Of 500 it is the one below the last."""
    made = ConsistencyOptions(**CHOSEN, grid=grid, levels=count).on(TEACHER)
    assert len(made._levels) == count + 1
    assert made._levels[-1] == LEVELS[0]
    assert made._levels[0] == LEVELS[-1]
    assert (made._levels.diff() < 0).all()
    assert made.stages()[0].name == f"consistency over {count} levels"
    with pytest.raises(ValueError, match=f"student of {count} trained levels"):
        spaced_levels(made._levels, count + 1)


def test_seventeen_levels_of_the_edm_grid_are_song_et_als_eighteen_points():
    """Song et al. 2023, section 3: t_i = (eps^(1/7) + (i - 1) / (N - 1) (T^(1/7) - eps^(1/7)))^7 with N of 18."""
    low, high = float(LEVELS[0]) ** (1 / 7), float(LEVELS[-1]) ** (1 / 7)
    points = [(low + i / 17 * (high - low)) ** 7 for i in range(18)]
    assert trained_levels(Grid.EDM, 17, table=LEVELS).tolist() == pytest.approx(points[::-1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("consistency_distillation", {**CHOSEN, "levels": 18}),
        (
            "consistency_training",
            {"steps": 2, "iterations": 5, "learning_rate": 1e-4, "first_levels": 18, "last_levels": 18},
        ),
    ],
)
def test_a_run_of_old_goes_on_along_the_levels_that_it_was_begun_on(name, chosen, tmp_path):
    """On the edm grid levels counted one more: 18 points. What is not read from the run but chosen anew is another training."""
    for grid in Grid:
        old = {**chosen, "grid": grid.value}
        run = RunFolder(tmp_path, grid.value)
        now = METHODS[name].read(old).on(TEACHER)
        begun = read_method(name, old)
        levels = 17 if grid is Grid.EDM else 18
        assert len(_levels(begun)) == levels + 1, "which are 18 points of the edm grid"
        with pytest.raises(ValueError, match=f"student of {levels} trained levels"):
            begun.schedule(levels + 1, table=LEVELS)
        said_then = {f"method.{key}": value for key, value in begun.on(TEACHER).options().items()}
        said = {f"method.{key}": value for key, value in now.options().items()}
        older = {key: value for key, value in said.items() if key != "method.level_count"}
        run.path.mkdir()
        (run.path / "run.json").write_text(json.dumps({"run": older, "free": {}}))
        run.save_checkpoint(1, {"weight": torch.zeros(1)}, {"stage": 0, "stage_iteration": 1})
        absent = {f"method.{key}": value for key, value in now.options_of_old().items()}
        if grid is Grid.EDM:
            with pytest.raises(ValueError, match=r"method\.level_count: there points, here intervals"):
                run.claim({"run": said, "free": {}}, absent=absent)
        else:
            assert said_then == said
        assert run.claim({"run": said_then, "free": {}}, absent=absent), "as the run itself says"
        assert read_method(name, now.options()).written() == now.options(), "a run of now is read again"


def _levels(options):
    """Those at the end of a training."""
    at = {"iteration": 4} if isinstance(options, ConsistencyTrainingOptions) else {}
    return options.trained_levels(**at, table=LEVELS)
