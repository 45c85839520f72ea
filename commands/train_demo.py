"""Trains what the demo ships: the digits classifier and the demo teacher. Seeded; minutes on two CPU cores."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from ..trainers.measures.digits import DigitClassifier, load_pictures, split, training_data
from ..trainers.measures.evaluate import FeatureStatistics
from ..trainers.methods.denoising import Denoising
from ..trainers.storage.files import write_tensors
from ..trainers.storage.run_folder import RunFolder
from ..trainers.students.student import FullWeightsStudent
from ..trainers.training.loop import Metrics, train
from ..trainers.training.optimisation.options import TrainOptions
from .embedded import import_host

ROOT = Path(__file__).resolve().parent.parent
DATA = "scikit-learn load_digits, 1797 pictures (UCI ML hand-written digits, CC BY 4.0)"


def train_classifier(seed: int, iterations: int) -> None:
    """Cross-entropy on four fifths of the data; the held-out accuracy goes into the file."""
    torch.manual_seed(seed)
    pictures, labels = load_pictures()
    kept, held_out = split(len(pictures))
    classifier = DigitClassifier()
    classifier.initialise(torch.Generator().manual_seed(seed))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(iterations):
        index = kept[torch.randint(len(kept), (128,))]
        loss = F.cross_entropy(classifier.classify(classifier.features(pictures[index])), labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    classifier.eval()
    with torch.no_grad():
        features = classifier.features(pictures)
        right = classifier.classify(features).argmax(dim=1) == labels
    accuracy = float(right[held_out].double().mean())
    real = FeatureStatistics.of(features)
    tensors = dict(classifier.state_dict()) | {"real.mean": real.mean, "real.covariance": real.covariance}
    write_tensors(
        ROOT / "assets" / "digits_classifier.safetensors",
        tensors,
        metadata={
            "data": DATA,
            "seed": str(seed),
            "iterations": str(iterations),
            "command": f"python launch.py train-demo-classifier --seed {seed} --iterations {iterations}",
            "held_out_accuracy": f"{accuracy:.4f} on {len(held_out)} pictures",
        },
    )
    print(f"classifier: held-out accuracy {accuracy:.4f}")


def train_teacher(seed: int, iterations: int, batch_size: int) -> None:
    """The plain v-loss on all digits through the same loop as every distillation; weights are kept as float16."""
    import_host()
    from ..nodes import host
    from ..nodes.demo import digits_model

    network, unused = digits_model.new_model(), digits_model.new_model()
    digits_model.initialise(network, generator=torch.Generator().manual_seed(seed))
    method = Denoising(
        table=host.models.noise_levels(network.model_sampling), iterations=iterations, learning_rate=2e-3
    )
    student = FullWeightsStudent(network, unused, as_denoiser=digits_model.as_denoiser)
    run = RunFolder(ROOT / ".fewstep" / "demo-training", f"teacher seed {seed}")
    shutil.rmtree(run.path, ignore_errors=True)
    options = TrainOptions(
        batch_size=batch_size, optimiser="adamw", weight_decay=0.01, seed=seed, checkpoint_every=10**6
    )
    with run.locked():
        train(run, method, student, training_data(), options=options, observers=[_say])
    weights = {name: value.half() for name, value in network.diffusion_model.state_dict().items()}
    write_tensors(
        digits_model.TEACHER_FILE,
        weights,
        metadata={
            "data": DATA,
            "seed": str(seed),
            "iterations": str(iterations),
            "batch_size": str(batch_size),
            "command": f"python launch.py train-demo-teacher --seed {seed} --iterations {iterations}"
            f" --batch-size {batch_size}",
            "prediction_type": "v_prediction",
        },
    )
    print(f"teacher: {sum(v.numel() for v in weights.values())} parameters in {digits_model.TEACHER_FILE.name}")


def _say(metrics: Metrics) -> None:
    if metrics.iteration % 250 == 0:
        left = f"{metrics.seconds_left:.0f} s left"
        print(f"iteration {metrics.iteration} of {metrics.iterations}, loss {metrics.loss:.4f}, {left}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["teacher", "classifier"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--batch-size", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.what == "classifier":
        train_classifier(arguments.seed, arguments.iterations or 1500)
    else:
        train_teacher(arguments.seed, arguments.iterations or 6000, arguments.batch_size)


if __name__ == "__main__":
    main()
