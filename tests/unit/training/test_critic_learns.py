"""A critic in the loop: whose weights its updates move, and where it brings a student whose teacher is wrong."""

import pytest
import torch
from comfyui_fewstep.samplers.noise import NoiseFamily
from comfyui_fewstep.trainers.data.batches import TensorData
from comfyui_fewstep.trainers.methods.distribution_matching import DistributionMatchingOptions
from comfyui_fewstep.trainers.objective.method import TeacherKind
from comfyui_fewstep.trainers.processes.group import Processes
from comfyui_fewstep.trainers.storage.run_folder import RunFolder
from comfyui_fewstep.trainers.training.loop import _Training, train
from comfyui_fewstep.trainers.training.optimisation.options import TrainOptions
from gaussian import table
from process_worker import data, student_of
from test_companions import KINDS, equal, snapshot

VE = NoiseFamily.VARIANCE_EXPLODING


def method(**changed):
    chosen = {"steps": 1, "iterations": 4, "learning_rate": 3e-3, "guidance_scale": 1.0, "companion_updates": 1}
    chosen |= {"companion_first": 1, "companion_learning_rate": 3e-3, "adversarial_weight": 1.0}
    options = DistributionMatchingOptions(**(chosen | {"critic_learning_rate": 3e-3} | changed))
    return options.on(TeacherKind(family=VE, table=table(VE), empty_prompt=True))


@pytest.mark.parametrize("kind", KINDS)
def test_its_updates_move_its_own_weights_alone(kind, tmp_path):
    """To the bit, of all three and the network below, whoever learns."""
    student = student_of(kind)
    student.writes_in_place = True
    options = TrainOptions(batch_size=4, log_every=1, checkpoint_every=100)
    loop = _Training(RunFolder(tmp_path, "run"), method(), student, data(), options, [], Processes())
    fake, critic = loop._companions._all.values()
    network = student._teacher_module if kind == "full" else student._denoise.__closure__[0].cell_contents
    weights = {
        "student": student.parameters,
        "fake": fake.network.parameters,
        "critic": critic.network.parameters,
        "network": lambda: list(network.parameters()),
    }
    moved = []

    def watching(name, learner):
        update = learner.update

        def watched(target, *, rate):
            before = {of: snapshot(values()) for of, values in weights.items()}
            figures = update(target, rate=rate)
            moved.append((name, [of for of, values in weights.items() if not equal(before[of], values())]))
            return figures

        learner.update = watched

    for name, learner in (("student", loop._learner), ("fake", fake.learner), ("critic", critic.learner)):
        watching(name, learner)
    for _ in range(5):
        loop._step(loop._stages[0])
    assert moved[:2] == [("fake", ["fake"]), ("critic", ["critic"])], "in the lead"
    assert moved[2:] == [("fake", ["fake"]), ("critic", ["critic"]), ("student", ["student"])] * 4


def drawn(root, *, weight):
    """The mean of what a student draws in one step, whose teacher knows nothing of pictures around 2."""
    student, wrong = student_of("full"), data()
    student.writes_in_place = True
    x0 = 2.0 + 0.1 * torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    pictures = TensorData(x0=x0, condition=wrong.condition, unconditional=wrong.unconditional)
    made = method(iterations=80, learning_rate=1e-2, adversarial_weight=weight, critic_learning_rate=1e-2)
    options = TrainOptions(batch_size=16, log_every=1000, checkpoint_every=1000, gradient_clip=100.0)
    train(RunFolder(root, "run"), made, student, pictures, options=options)
    (stage,) = made.stages()
    noise = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    start = VE.initial(noise, sigma=stage.sigmas[0])
    with torch.no_grad():
        return float(student.denoiser(start, stage.sigmas[:1].expand(200), y=wrong.condition["y"].repeat(5, 1)).mean())


def test_pictures_lead_a_student_away_from_what_its_teacher_does_wrong(tmp_path):
    """A pull of the wrong sign leads it the other way."""
    alone, led = (drawn(tmp_path / str(weight), weight=weight) for weight in (0.0, 20.0))
    assert alone < 0.7
    assert led > alone + 0.5
