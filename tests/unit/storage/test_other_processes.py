"""A run's folder while other processes, and people, do with it what they may: nothing that one of them writes is lost."""

import pytest
from comfyui_fewstep.trainers.storage.files import writing
from comfyui_fewstep.trainers.storage.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """One that is written."""
    made = RunFolder(tmp_path, "run")
    with made.locked():
        made.claim({"run": {"method": "m", "teacher_sha256": "ab"}})
    return made


@pytest.mark.parametrize(
    "place", ["note.txt", "stop", "cancel", "report.json", "report/report.html", "report/pictures/00.png"]
)
def test_a_start_takes_nothing_from_who_writes_without_its_lock(place, run):
    """A report of minutes was lost where a terminal went on with its run."""
    with writing(run.path / place) as unfinished:
        unfinished.write_bytes(b"content")
        with RunFolder(run.path.parent, run.name).locked():
            pass
    assert (run.path / place).read_bytes() == b"content"
