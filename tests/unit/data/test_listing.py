"""The files of a folder: which count, what describes them, what is passed over, and what is no file at all."""

import os

import pytest
from comfyui_fewstep.trainers.data import listing
from comfyui_fewstep.trainers.data.files import BrokenFile
from comfyui_fewstep.trainers.data.listing import (
    NOT_READ,
    READ,
    REPEATED,
    SUBFOLDERS,
    captioned,
    content_of,
    listed,
)
from comfyui_fewstep.trainers.data.pictures import ENDINGS, picture_size, pixels
from PIL import Image


def files_in(folder, **options):
    return listed(folder, ENDINGS, **options).files


def texts(folder, *, caption="", **options):
    return {each.name: each.caption for each in captioned(files_in(folder, **options), caption=caption)}


def draw(path, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 8)).save(path, format="PNG")


# --- which files -----------------------------------------------------------------------------------------------------


def test_the_pictures_of_a_folder_are_those_in_it_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.JFIF", "d.avif", "e.heic"):
        draw(tmp_path / name)
    draw(tmp_path / "below" / "c.png")
    assert [file.name for file in files_in(tmp_path)] == ["a.jpg", "b.PNG", "c.JFIF", "d.avif", "e.heic"]


def test_what_is_passed_over_is_said(tmp_path):
    for name in ("a.png", "b.png", ".hidden.png", "below/c.png"):
        draw(tmp_path / name)
    for name in ("a.txt", "a.caption", "notes.txt", "clip.mp4", "x.npz", "y.npz", "README"):
        (tmp_path / name).write_text("x")
    assert listed(tmp_path, ENDINGS).said() == (
        f"2 pictures in {tmp_path}, 1 with a caption file. Passed over: 1 .mp4 files, 2 .npz files, "
        "2 caption files of no use, 1 folders in it, 1 hidden pictures, 1 other files."
    )


def test_folders_below_count_by_choice(tmp_path):
    for name in ("b.png", "x/a.png", "x/y/c.png", ".trash/d.png"):
        draw(tmp_path / name)
    (tmp_path / "x" / "a.txt").write_text("an a")
    (tmp_path / "linked").symlink_to(tmp_path / "x")
    assert [file.name for file in files_in(tmp_path, subfolders=NOT_READ)] == ["b.png"]
    assert texts(tmp_path, subfolders=READ) == {"b.png": "", "x/a.png": "an a", "x/y/c.png": ""}
    said = listed(tmp_path, ENDINGS, subfolders=READ).said()
    assert "1 hidden folders, 1 links to folders" in said
    with pytest.raises(ValueError, match="subfolders is 'some'; allowed are not read, read"):
        listed(tmp_path, ENDINGS, subfolders="some")


def test_kohyas_folders_repeat_and_describe_what_is_in_them(tmp_path):
    for name in ("10_a red fox/1.png", "10_a red fox/in/2.png", "3_x/in/5_y/4.png", "free/5.png", "0_off/6.png"):
        draw(tmp_path / name)
    (tmp_path / "10_a red fox" / "1.txt").write_text("a fox in the snow")
    found = {file.name: file.repeats for file in captioned(files_in(tmp_path, subfolders=REPEATED), caption="")}
    assert found == {"10_a red fox/1.png": 10, "10_a red fox/in/2.png": 10, "3_x/in/5_y/4.png": 5, "free/5.png": 1}
    assert list(texts(tmp_path, subfolders=REPEATED, caption="typed").values()) == [
        "a fox in the snow",
        "a red fox",
        "y",
        "typed",
    ]
    assert "1 pictures in folders of 0 repeats" in listed(tmp_path, ENDINGS, subfolders=REPEATED).said()
    assert {file.repeats for file in files_in(tmp_path, subfolders=READ)} == {1}


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures; looked for are \.png, .*, not below it"):
        files_in(tmp_path)
    with pytest.raises(ValueError, match="which is no folder"):
        files_in(tmp_path / "missing")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "nowhere"])
def test_what_no_system_takes_as_a_path_is_no_folder(path, tmp_path):
    with pytest.raises(ValueError, match="which is no folder"):
        files_in(tmp_path / path)
    assert content_of(tmp_path / path) == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    draw(tmp_path / "shut" / "a.png")
    (tmp_path / "shut").chmod(0)
    with pytest.raises(ValueError, match=r"shut cannot be read \(Permission denied"):
        files_in(tmp_path, subfolders=READ)
    (tmp_path / "shut").chmod(0o700)


def test_a_change_below_is_seen_where_it_counts(tmp_path):
    draw(tmp_path / "x" / "a.png")
    top, whole = content_of(tmp_path), content_of(tmp_path, below=True)
    (tmp_path / "x" / "a.png").write_bytes(b"other")
    assert content_of(tmp_path) == top
    assert content_of(tmp_path, below=True) != whole


def test_what_is_said_of_a_folder_is_short_however_much_it_holds(tmp_path):
    """The host writes it into every picture that it saves, and sends it to every page that asks for what was queued."""
    for number in range(1000):
        (tmp_path / f"a long name of a picture {number}.txt").touch()
    assert len(content_of(tmp_path)) == 64


def test_no_file_is_looked_at_to_be_listed(tmp_path, monkeypatch):
    """Thousands of files on a network's disk are listed while the server answers nobody."""
    for number in range(20):
        draw(tmp_path / "x" / f"{number}.png")
        (tmp_path / "x" / f"{number}.txt").write_text("text")
    asked = []
    monkeypatch.setattr(listing, "is_folder", lambda path: asked.append(path) or path.is_dir())
    assert len(files_in(tmp_path, subfolders=READ)) == 20
    assert asked == [tmp_path]


FILES = [
    [],
    ["a.txt", "notes.md"],
    ["a.PNG"],
    [".hidden.png"],
    ["x/a.png"],
    ["x/y/a.png", "b.txt"],
    [".trash/a.png"],
    ["0_x/a.png"],
    ["2_x/a.png"],
]


@pytest.mark.parametrize("subfolders", [*SUBFOLDERS, "another"])
@pytest.mark.parametrize("names", FILES)
def test_a_first_look_at_a_folder_refuses_what_the_list_does(names, subfolders, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    refused = []
    for look in (listed, listing.require_any):
        try:
            look(tmp_path, ENDINGS, what="pictures", subfolders=subfolders)
            refused.append(None)
        except ValueError as error:
            refused.append(str(error))
    assert refused[0] == refused[1]


def test_a_first_look_ends_at_the_first_file(tmp_path, monkeypatch):
    """Hosts answer nobody while they check what is queued; links are followed no more than by the list."""
    draw(tmp_path / "x" / "a.png")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "round").symlink_to(tmp_path / "y")
    asked, listing_it = [], listing.listed
    monkeypatch.setattr(
        listing, "listed", lambda *args, **kw: asked.append(kw["subfolders"]) or listing_it(*args, **kw)
    )
    listing.require_any(tmp_path, ENDINGS, what="pictures", subfolders=READ)
    assert asked == []
    with pytest.raises(ValueError, match="holds no pictures"):
        listing.require_any(tmp_path / "y", ENDINGS, what="pictures", subfolders=READ)
    assert asked == [READ]


# --- captions --------------------------------------------------------------------------------------------------------


def test_an_error_of_thousands_of_files_names_some_and_the_log_all(tmp_path, caplog):
    """It stands in a dialog, in the run's folder, and beside the run in every list of runs that is asked for."""
    names = [f"{number:04d}.png" for number in range(1000)]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"^1000 of the files .* 0019\.png, and 980 more, which the log names\.$"):
        texts(tmp_path, caption=None)
    assert ", ".join(names) in caplog.text


def test_captions_lie_beside_the_files(tmp_path):
    for name in "abcde":
        draw(tmp_path / f"{name}.png")
    (tmp_path / "e.txt").write_bytes("a fox".encode("utf-16-le"))
    (tmp_path / "a.txt").write_text("a red fox,\n  in the snow \n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("\ufeffein F\u00fcchslein".encode())
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    found = captioned(files_in(tmp_path), caption="a picture")
    assert [file.caption for file in found] == ["a red fox, in the snow", "ein F\u00fcchslein", "", "a picture", ""]
    assert found[2].broken.startswith("its caption c.txt is no UTF-8 text")
    assert found[4].broken == "its caption e.txt is no UTF-8 text (it holds zero bytes)"
    with pytest.raises(ValueError, match=r"1 of the files have no caption file beside them: d\.png\."):
        captioned(files_in(tmp_path), caption=None)


@pytest.mark.parametrize("name", ["a.TXT", "a.caption", "a.Caption", "a.png.txt", "a.png.caption"])
def test_every_usual_name_of_a_caption_counts(name, tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / name).write_text("a fox")
    assert texts(tmp_path) == {"a.png": "a fox"}


def test_of_several_captions_the_usual_one_counts(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("a.png.caption", "a.png.txt", "a.caption", "a.TXT", "a.txt"):
        (tmp_path / name).write_text(name)
        assert texts(tmp_path) == {"a.png": name}


def test_a_file_is_known_by_its_bytes(tmp_path):
    for name, width in (("a", 16), ("b", 16), ("c", 18)):
        draw(tmp_path / f"{name}.png", width)
    sums = [file.sha256 for file in captioned(files_in(tmp_path), caption="")]
    assert sums[0] == sums[1] != sums[2]


def test_looking_can_be_stopped_before_every_file(tmp_path):
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    looked = []
    captioned(files_in(tmp_path), caption="", looked=lambda: looked.append(1))
    assert len(looked) == 3


# --- what is no file -------------------------------------------------------------------------------------------------


def odd_entries(folder):
    """By name: what is called as a picture is and is none, and how it says so."""
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "terminal.jpg").symlink_to("/dev/stdin")
    os.mkfifo(folder / "pipe.png")
    draw(folder / "by a pipe.png")
    (folder / "by a pipe.txt").symlink_to(folder / "pipe.png")
    no_file = ("folder.png", "zeros.png", "terminal.jpg", "pipe.png")
    return dict.fromkeys(no_file, "not a file") | dict.fromkeys(("dangling.png", "loop.png"), "cannot be read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_broken_and_holds_nobody_up(tmp_path):
    odd = odd_entries(tmp_path)
    draw(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("x")
    found = {file.name: file for file in captioned(files_in(tmp_path), caption=None)}
    assert found.keys() == {*odd, "good.png", "by a pipe.png"}
    assert [name for name, file in found.items() if file.sha256] == ["good.png"]
    assert found["by a pipe.png"].broken.startswith("its caption by a pipe.txt: it is a folder, pipe or device")
    assert content_of(tmp_path) == content_of(tmp_path), "looking again is allowed"
    for name, said in odd.items():
        assert said in found[name].broken
        for read in (picture_size, lambda path: pixels(path, (8, 8))):
            with pytest.raises(BrokenFile, match=said):
                read(tmp_path / name)


@pytest.mark.parametrize("name", [b"\xff.png", b"sub\xe9/a.png"])
def test_a_name_that_is_no_text_is_broken_by_name(name, tmp_path):
    try:
        draw(tmp_path / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system has no such names")
    (file,) = captioned(files_in(tmp_path, subfolders=READ), caption=None)
    assert file.broken == "its name is no UTF-8 text; rename it"
    assert file.name.encode() == name.decode("utf-8", "backslashreplace").encode()
