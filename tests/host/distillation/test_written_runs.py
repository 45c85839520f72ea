"""A run that Write Run made, in a terminal: what it must find there, and what it need not."""

import importlib
import json
import shutil
import sys

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from test_runs import refused_here, style, trained_here, workflow  # noqa: F401 (fixtures)


@pytest.mark.parametrize("entry", ["data_sha256", "prediction_type", "noise_family"])
def test_a_written_run_with_other_data_is_refused(entry, client, runs, style, name, refused_here):  # noqa: F811
    """Before it has begun nothing else would see that its folder of data is another run's."""
    client.run(workflow(name, "FewStepWriteRun"))
    file = runs / name / "run.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"run": written["run"] | {entry: "x"}}))
    assert f"was written with other data or another teacher: {entry}: there x, here" in refused_here(runs / name)
    file.write_text(json.dumps(written | {"run": written["run"] | {"format": 2}}))
    assert "its format is 2; known here is 1" in refused_here(runs / name)


def test_a_finished_run_wants_neither_teacher_nor_data(client, runs, style, name, trained_here):  # noqa: F811
    client.run(workflow(name, "FewStepWriteRun"))
    first = trained_here(runs / name)
    shutil.rmtree(runs / name / "data")
    content = style.read_bytes()
    try:
        style.unlink()
        assert trained_here(runs / name) == first
    finally:
        style.write_bytes(content)


def test_a_base_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    for command in ("train", "plan"):
        module = importlib.import_module(f"comfyui_fewstep.commands.{command}")
        monkeypatch.setattr(sys, "argv", [command, str(tmp_path / "run"), "--base", str(tmp_path / "gone")])
        with pytest.raises(SystemExit, match=r"--base is '.*gone', which is no folder"):
            module.main()
    assert not (tmp_path / "gone").exists()
