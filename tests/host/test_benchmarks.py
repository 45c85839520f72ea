"""The training benchmark at its smallest, in the shapes that are measured on a GPU."""

import re

import pytest
from comfyui_fewstep.benchmarks import training


def test_the_training_benchmark_measures_time_and_memory(tmp_path):
    small = "--precision bfloat16 --channels 32 --pixels 64 --batch 1 --rounds 1 --iterations 2 --students LoRA"
    training.main([*small.split(), "--folder", str(tmp_path)])
    page = (tmp_path / "training_sd15_64.md").read_text()
    times, memories = (
        [float(number) for number in re.findall(r"[\d.]+", line.replace("LoRA", ""))]
        for line in page.splitlines()
        if line.startswith("| LoRA")
    )
    assert all(number > 0 for number in (*times[:5], *memories))
    floor, loop, ratio, less, saved, _ = memories
    assert ratio == pytest.approx(loop / floor, rel=0.02)
    assert saved == pytest.approx(less / floor, rel=0.02)
