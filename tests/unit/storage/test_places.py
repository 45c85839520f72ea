"""Names that lead nowhere else, and links that nobody follows."""

import os
import subprocess
import sys

import pytest
from comfyui_fewstep.trainers.runs.watching import (
    all_runs,
    newest_metrics,
    preview_file,
    previews,
    state_of,
    summary,
)
from comfyui_fewstep.trainers.storage.places import is_link, is_name, place, require_name, require_no_links
from comfyui_fewstep.trainers.storage.run_folder import RunFolder

NAMES = ["my student", "a", "7.5_x-y", "\u5b66\u751f", "\u043c\u043e\u0439 \u0441", "\u0635\u200c\u0627"]
NAMES += ["\u0928\u092e\u0938\u094d\u0924\u0947", "conny", "nullable", "x" * 100]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_in_any_script(name, tmp_path):
    assert is_name(name)
    run = RunFolder(tmp_path, name)
    with run.locked():
        run.save_checkpoint(1, {}, {"stage": 0})
    assert [found.name for found in all_runs(tmp_path)] == [name]


HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "a/b",
    "../../../../evil",
    "/etc/passwd",
    "C:\\evil",
    "a\\b",
    "x\0y",
    "\0",
    "x\ny",
    "x" * 101,
]
HOSTILE += [
    "\u5b66" * 80,
    "trailing.",
    "trailing ",
    " leading",
    ".hidden",
    "-x",
    "CON",
    "COM\u00b9",
    "con",
    "nul.txt",
    "Aux .png",
    "LPT9",
]
HOSTILE += [
    "a:b",
    'a"b',
    "a*b",
    "a?b",
    "a|b",
    "a<b",
    "$(evil)",
    "`evil`",
    "%PATH%",
    "a;b",
    "a\u202eb",
    "\ud800",
    "\ufeffa",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_that_could_lead_elsewhere(name, tmp_path):
    assert not is_name(name)
    with pytest.raises(ValueError, match=r"the run name is .* no path may be in it"):
        RunFolder(tmp_path, name)


@pytest.mark.parametrize("name", [None, 7, ["a"]])
def test_what_is_no_text_is_no_name(name):
    with pytest.raises(ValueError, match="the run name is"):
        require_name(name, what="run name")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are UTF-8 there in any locale")
def test_a_name_that_the_locale_cannot_write_is_refused_in_words():
    """The codec's own error, a ValueError too, is no help."""
    code = (
        "from comfyui_fewstep.trainers.storage.places import require_name\n"
        "for name in ('fox', 'f\\xfcchse'):\n"
        "    try: print(require_name(name, what='run name'))\n"
        "    except ValueError as error: print(ascii(str(error)))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **locale})
    assert done.returncode == 0, done.stderr
    allowed, refused = done.stdout.splitlines()
    assert allowed == "fox"
    assert "locale (ascii) whose file names have no" in refused
    assert "PYTHONUTF8=1" in refused


def test_a_place_is_below_its_root(tmp_path):
    assert place(tmp_path, "a", "b.png") == tmp_path / "a" / "b.png"
    for name in ("", ".", "..", "a/b", "a\\b", "a\0b", str(tmp_path)):
        with pytest.raises(ValueError, match="is no name of a file"):
            place(tmp_path, name)


def test_a_root_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk", target_is_directory=True)
    run = RunFolder(tmp_path / "runs", "run")
    with run.locked():
        run.claim({"run": {}})
    assert (tmp_path / "disk" / "run" / "run.json").exists()


@pytest.fixture
def outside(tmp_path):
    """A folder that looks like a run and is none of ours."""
    made = tmp_path / "outside"
    for folder in ("previews", "checkpoints", "stages", "data"):
        (made / folder).mkdir(parents=True)
    (made / "previews" / "00000001.png").write_bytes(b"secret")
    files = ("run.json", "workflow.json", "metrics.jsonl", "metrics.jsonl.damaged", "stages.json", "report.json")
    for name in (*files, ".lock", "stop", "cancel", "error.txt", "data/index.json"):
        (made / name).write_text('{"secret": 1}\n')
    for name in ("student.safetensors", "checkpoints/00000001.safetensors", "stages/4 steps.safetensors"):
        (made / name).write_bytes(b"secret")
    return made


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_a_link_is_listed_as_damaged_and_deleted_alone(tmp_path, outside):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "linked").symlink_to(outside, target_is_directory=True)
    with RunFolder(runs, "good").locked():
        RunFolder(runs, "good").claim({"run": {"method": "m", "teacher_sha256": "a"}})
    before = content(outside)
    assert {run.name for run in all_runs(runs)} == {"good", "linked"}
    run = RunFolder(runs, "linked")
    told = summary(run)
    assert (told["state"], told["preview"], told["method"]) == ("damaged", None, None)
    assert "is a link" in told["error"]
    with pytest.raises(ValueError, match="is a link"), run.locked():
        pass
    run.delete()
    assert not is_link(runs / "linked")
    assert content(outside) == before


PARTS = [
    "previews",
    "checkpoints",
    "stages",
    "run.json",
    "workflow.json",
    "metrics.jsonl",
    "stages.json",
    "report.json",
]
PARTS += [".lock", "stop", "cancel", "error.txt", "data", "metrics.jsonl.damaged", "student.safetensors"]


@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_a_run_is_followed(part, tmp_path, outside):
    run = RunFolder(tmp_path / "runs", "run")
    with run.locked():
        run.claim({"run": {"method": "m", "teacher_sha256": "a"}})
        if part != "workflow.json":
            run.keep_workflow({})
    (run.path / part).unlink(missing_ok=True)
    (run.path / part).symlink_to(outside / part)
    before = content(outside)
    assert "secret" not in repr(summary(run))
    reads = (run.workflow, run.description, run.metrics, lambda: newest_metrics(run), run.comparisons, run.checkpoints)
    for read in (*reads, run.repair, run.error, run.scores, lambda: run.data_folder, lambda: run.cancel_asked):
        try:
            said = read()
        except ValueError as error:
            said = str(error)
        assert "secret" not in repr(said)
    with pytest.raises(ValueError, match="is a link"), run.locked():
        pass
    if part == "previews":
        with pytest.raises(ValueError, match="is a link"):
            preview_file(run, 1)
        with pytest.raises(ValueError, match="is a link"):
            previews(run)
    if part == "metrics.jsonl":
        with pytest.raises(ValueError, match="is a link"):
            run.log({"iteration": 1})
    run.delete()
    assert not os.path.lexists(run.path)
    assert content(outside) == before


def test_a_link_among_files_is_none_of_them(tmp_path, outside):
    run = RunFolder(tmp_path / "runs", "run")
    for folder, name in (("previews", "00000001.png"), ("checkpoints", "00000001.safetensors")):
        (run.path / folder).mkdir(parents=True)
        (run.path / folder / name).symlink_to(outside / folder / name)
    assert previews(run) == []
    assert run.checkpoints() == []
    with pytest.raises(ValueError, match="is a link"):
        preview_file(run, 1)
    with pytest.raises(ValueError, match=r"00000001\.png is a link|00000001\.safetensors is a link"):
        require_no_links(run.path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("part", ["run.json", "metrics.jsonl", "stages.json", "report.json", "workflow.json", ".lock"])
def test_a_pipe_in_a_run_holds_nobody_up(part, tmp_path):
    run = RunFolder(tmp_path, "run")
    run.path.mkdir()
    if part != "run.json":
        (run.path / "run.json").write_text('{"run": {"method": "m", "teacher_sha256": "a"}}')
    os.mkfifo(run.path / part)
    assert [found.name for found in all_runs(tmp_path)] == ["run"]
    summary(run)
    state_of(run)
    run.delete()
    assert not run.path.exists()
