"""Whatever lies in a run's files, the list of runs says it, the other runs are listed, and the run can be mended or deleted."""

import json

import pytest
from comfyui_fewstep.trainers.runs.watching import all_runs, curves, summary
from comfyui_fewstep.trainers.storage.files import write_tensors
from comfyui_fewstep.trainers.storage.identity import other_answers
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


def line(iteration, **changed):
    values = {"iteration": iteration, "iterations": 9, "stage": 0, "stage_name": "s", "loss": 0.5, "x0_error": 0.25}
    return values | {"gradient_norm": 1.0, "learning_rate": 0.1, "band_errors": [0.5, None]} | changed


def made(root, name="run"):
    run = RunFolder(root, name)
    with run.locked():
        run.claim(
            {"run": {"method": "progressive", "method.start_steps": 8, "student.kind": "lora", "teacher_sha256": "ab"}}
        )
    for iteration in (1, 2, 3):
        run.log(line(iteration))
    return run


LINES = {
    "blank": b"\n",
    "null": b"null\n",
    "number": b"7\n",
    "text": b'"text"\n',
    "list": b"[1]\n",
    "half": b'{"iteration": 2\n',
    "Latin-1": '{"stage_name": "\xfcbung"}\n'.encode("latin-1"),
    "zeros": b"\0" * 40 + b"\n",
    "no fields": b"{}\n",
    "wrong field": (json.dumps(line(2, loss="much")) + "\n").encode(),
    "negative": (json.dumps(line(-2)) + "\n").encode(),
    "boolean": (json.dumps(line(True)) + "\n").encode(),
    "bands": (json.dumps(line(2, band_errors=[[1]])) + "\n").encode(),
    "deep": b"[" * 50000 + b"\n",
    "huge": b'"' + b"x" * 300000 + b'"\n',
}


@pytest.mark.parametrize("where", [0, 1, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_is_told_and_repaired(kind, where, tmp_path):
    run, good = made(tmp_path), made(tmp_path, "good")
    file = run.path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:where], LINES[kind], *lines[where:]]))
    damaged = file.read_bytes()
    told = {listed.name: summary(listed) for listed in all_runs(tmp_path)}
    assert "error" not in told["good"]
    assert f"line {where + 1} of metrics.jsonl" in told["run"]["error"]
    assert (told["run"]["iteration"], told["run"]["repairable"], told["run"]["method"]) == (3, True, "progressive")
    with pytest.raises(ValueError, match=f"line {where + 1} of metrics.jsonl .*Repair it"):
        run.metrics()
    assert run.repair() == 3
    assert "error" not in summary(run)
    assert run.metrics() == good.metrics()
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == damaged, "nothing is lost"
    with pytest.raises(ValueError, match="nothing to repair"):
        run.repair()
    file.write_bytes(b"{\n" + file.read_bytes())
    assert run.repair() == 3
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == damaged, "nor what was damaged before"
    assert (run.path / "metrics.jsonl.damaged 2").read_bytes().startswith(b"{\n")


def test_a_line_that_a_crash_cut_is_no_damage(tmp_path):
    run = made(tmp_path)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 4, "lo')
    assert "error" not in summary(run)
    assert [one["iteration"] for one in run.metrics()] == [1, 2, 3]


def test_numbers_that_are_none_never_reach_the_browser(tmp_path):
    run = made(tmp_path)
    text = json.dumps(line(4, loss=float("nan"), x0_error=float("inf"), gradient_norm=-float("inf")))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(text.replace("0.1", "1e999") + "\n")
    run.log(line(5, loss=float("nan"), band_errors=[float("inf")]))
    (run.path / "stages.json").write_text(
        '[{"stage": "s", "steps": 4, "mean_squared_distance": NaN, "teacher_mean_square": Infinity}]'
    )
    (run.path / "report.json").write_text(
        '{"scores": [{"model": "student", "steps": 4, "frechet": NaN, "accuracy": 1e999}]}'
    )
    told = summary(run)
    assert "error" not in told
    json.dumps([told, curves(run.metrics())], allow_nan=False)
    assert curves(run.metrics())["loss"] == [0.5, 0.5, 0.5, None, None]
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])["loss"] is None


DEEP = "[" * 50000
FILES = {
    "run.json": [
        "",
        "{",
        "null",
        "7",
        "[]",
        '[["a", 1]]',
        '{"run": 7}',
        "{}",
        '{"run": {"method": "m"}}',
        DEEP,
        "\xff",
    ],
    "stages.json": ["", "null", "{}", "7", "[7]", "[{}]", '[{"stage": 1, "steps": "x"}]', '{"stages": []}', DEEP],
    "report.json": ["", "null", "[]", "{}", '{"scores": 7}', '{"scores": [7]}', '{"scores": [{}]}', DEEP],
}
FILES["run.json"] += ['{"run":' * 50000, '{"run": {"method": 7, "teacher_sha256": "a"}}']
FILES["run.json"] += [
    json.dumps({"run": {"method": "m", "teacher_sha256": "a"}, **more})
    for more in (
        {"teacher": 7},
        {"teacher": {"nodes": {}}},
        {"teacher": {"nodes": {"1": {}}, "outputs": {}}},
        {"teacher": {"nodes": {}, "outputs": {"model": "1"}}},
        {"teacher_is": {}},
        {
            "teacher_is": {
                **dict.fromkeys(("weights", "patches", "beside"), "a"),
                "levels": [],
                "changes": {},
                "answers": {},
            }
        },
    )
]
FILES["stages.json"] += ['[{"stage": "s", "steps": 4, "mean_squared_distance": "x", "teacher_mean_square": 1}]']


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in FILES for content in FILES[name]],
    ids=lambda text: ascii(text)[:20],
)
def test_a_damaged_file_is_told_and_the_other_runs_are_there(name, content, tmp_path):
    run, _ = made(tmp_path), made(tmp_path, "good")
    (run.path / name).write_bytes(content.encode("latin-1"))
    told = {listed.name: summary(listed) for listed in all_runs(tmp_path)}
    assert "error" not in told["good"]
    assert name in told["run"]["error"]
    assert told["run"]["iteration"] == 3, "what can be read is told"
    json.dumps(told, allow_nan=False)
    run.delete()
    assert not run.path.exists()


@pytest.mark.parametrize("levels", [150, 600, 900])
def test_what_is_too_deep_to_be_written_out_again_is_not_read(levels, tmp_path):
    """Python reads it, and then fails at telling the browser of it: no other run would be listed."""
    run, deep = made(tmp_path), "[" * levels + "]" * levels
    (run.path / "run.json").write_text('{"run": {"method": "m", "teacher_sha256": "a", "method.x": ' + deep + "}}")
    (run.path / "workflow.json").write_text('{"nodes": ' + deep + "}")
    assert "run.json is nested too deeply" in summary(run)["error"]
    with pytest.raises(ValueError, match=r"workflow\.json is nested too deeply"):
        run.workflow()
    run.keep_workflow({"nodes": [{"properties": {"text": "[" * 900}}] * 900})
    assert len(run.workflow()["nodes"]) == 900, "wide is not deep"


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "stages.json", "report.json", "checkpoints", "previews", ".lock"]
)
def test_a_folder_where_a_file_should_be_or_the_reverse(name, tmp_path):
    run, _ = made(tmp_path), made(tmp_path, "good")
    (run.path / name).unlink(missing_ok=True)
    if name in ("checkpoints", "previews"):
        (run.path / name).write_text("no folder")
    else:
        (run.path / name).mkdir()
        (run.path / name / "inside").touch()
    assert {listed.name for listed in all_runs(tmp_path)} == {"run", "good"}
    summary(run)
    run.delete()
    assert not run.path.exists()


def test_what_notepad_saved_is_read(tmp_path):
    """With a mark before its text, which is none of JSON's."""
    run = made(tmp_path)
    for name in ("run.json", "metrics.jsonl"):
        file = run.path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert "error" not in summary(run)
    assert run.description()["run"]["method"] == "progressive"


def test_a_run_that_lost_its_description_is_listed(tmp_path):
    run = made(tmp_path)
    write_tensors(run.path / "checkpoints" / "00000003.safetensors", {}, metadata={})
    (run.path / "run.json").unlink()
    (listed,) = all_runs(tmp_path)
    assert "has lost its run.json" in summary(listed)["error"]


def test_a_run_that_is_just_prepared_is_not_damaged(tmp_path):
    run = RunFolder(tmp_path, "run")
    with run.locked():
        assert "error" not in summary(run)
    assert "error" not in summary(RunFolder(tmp_path, "absent"))


class Stop(Exception):
    """Somebody's wish."""


def test_a_failed_start_keeps_its_error_until_the_next(tmp_path):
    run = made(tmp_path)
    with pytest.raises(RuntimeError), run.keeping_error(unless=Stop):
        raise RuntimeError("the loss is NaN")
    assert (run.error(), summary(run)["failure"]) == ("the loss is NaN", "the loss is NaN")
    with pytest.raises(Stop), run.keeping_error(unless=Stop):
        raise Stop
    assert summary(run)["failure"] is None
    with pytest.raises(KeyError), run.keeping_error(unless=Stop):
        raise KeyError
    assert run.error() == "KeyError"


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
def test_a_start_that_came_to_nothing_leaves_no_run(error, tmp_path):
    run = RunFolder(tmp_path, "run")
    with pytest.raises(error), run.locked(), run.gone_if_refused(keep_data=True):
        run.claim({"run": {}})
        run.keep_workflow({})
        raise error
    assert not run.path.exists()


@pytest.mark.parametrize("kept", ["run.json", "metrics.jsonl", "data", "checkpoint"])
def test_what_is_of_worth_stays(kept, tmp_path):
    run = RunFolder(tmp_path, "run")
    if kept == "run.json":
        run = made(tmp_path)
        (run.path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="refused"), run.locked(), run.gone_if_refused(keep_data=True):
        run.claim({"run": {}})
        if kept == "metrics.jsonl":
            run.log(line(1))
        if kept == "data":
            write_tensors(run.data_folder / "00000.safetensors", {}, metadata={})
        if kept == "checkpoint":
            run.save_checkpoint(1, {}, {"stage": 0})
        raise ValueError("refused")
    assert [found.name for found in all_runs(tmp_path)] == ([] if kept == "data" else ["run"])
    assert kept != "data" or run.files("data", ".safetensors")


@pytest.mark.parametrize("keep_data", [True, False])
def test_what_was_there_before_a_refused_start_stays(keep_data, tmp_path):
    """Data of a start before, which took hours, or a folder that is no run at all."""
    run = RunFolder(tmp_path, "run")
    write_tensors(run.data_folder / "00000.safetensors", {}, metadata={})
    run.place("note.txt").write_text("mine")
    with pytest.raises(ValueError, match="refused"), run.locked(), run.gone_if_refused(keep_data=keep_data):
        run.claim({"run": {}})
        run.keep_workflow({})
        raise ValueError("refused")
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "data", "note.txt"]
    assert run.place("note.txt").read_text() == "mine"
    assert run.files("data", ".safetensors")


def test_a_start_beside_another_one_takes_nothing_from_it(tmp_path):
    run = RunFolder(tmp_path, "run")
    with run.locked():
        with (
            pytest.raises(ValueError, match="is being trained"),
            RunFolder(tmp_path, "run").locked(),
            run.gone_if_refused(keep_data=True),
        ):
            pass
        assert (run.path / ".lock").exists()


def test_to_repair_what_was_deleted_in_another_tab_makes_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is no run 'gone'"):
        RunFolder(tmp_path, "gone").repair()
    assert list(tmp_path.iterdir()) == []


def test_answers_of_another_length_are_another_teachers():
    """Of a run.json that was damaged; in no words of Python's."""
    there, here = ({"float32 on cpu": [{"sigma": 1.0, "numbers": numbers}]} for numbers in ([0.5], [0.5, 0.25]))
    (said,) = other_answers(there, here)
    assert "the teacher's answers at noise level 1, by inf percent" in said
