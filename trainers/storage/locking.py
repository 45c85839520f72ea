"""Who may write in a run's folder: one process at a time. The system drops the lock when a process dies."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .places import is_regular

try:
    import fcntl
except ImportError:  # on Windows, where no folder is another's in this way
    fcntl = None  # type: ignore[assignment]

_LOOK_SECONDS = 1.0
"""How long the lock is waited for: whoever only looks whether a run is trained holds it for less than a millisecond."""
_GLANCE_SECONDS = 0.05
"""How long a look waits for another one, of another process, which would else be taken for whoever trains."""
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Of a folder that is another user's, a disk that is only read, and a full one."""
_LOOKING = threading.Lock()
"""Of this process one look at a time does so."""


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Where something is made in the folder of runs, or of one: OSError, saying what to do about it, where the disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise OSError(
            error.errno,
            f"nothing can be written to {folder} ({error.strerror}), where a run keeps all that it makes. Make room there, let "
            "the user that runs ComfyUI write there, or give ComfyUI an output folder elsewhere (--output-directory)",
        ) from error


class Lock:
    """Of a file in the folder of a run of that name."""

    def __init__(self, file: Path, *, name: str) -> None:
        self._file, self._name, self._lock = file, name, FileLock(file)
        self._taken: tuple[int, int] | None = None  # which file it is that is locked

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """ValueError while another process holds it, and where the folder was renamed or deleted before or meanwhile."""
        if not self._file.parent.is_dir():  # which the library would make
            raise self._gone()
        try:
            with writable(self._file.parent):
                self._take()
        except Timeout as error:
            raise ValueError(
                f"the run {self._name!r} is being trained by another process; stop it, wait, or choose another name."
            ) from error
        except FileNotFoundError as error:
            raise self._gone() from error
        except OSError as error:
            self._require_locks(error)
            raise
        try:
            yield
        finally:
            self._lock.release()

    def _take(self) -> None:
        self._lock.acquire(timeout=_LOOK_SECONDS)
        self._taken = _file_at(self._file)
        if not self._taken:  # what is locked is in the folder of another name, or in none
            self._lock.release()
            raise self._gone()

    def _gone(self) -> ValueError:
        return ValueError(f"the run {self._name!r} was just renamed or deleted.")

    def require_in_place(self) -> None:
        """While it is held. Where somebody deleted its file, the one there is held from now on: nothing else kept others away.

        ValueError where another process has it by then, and where the folder was moved or deleted: what is written would make
        another one, without a run.json to go on with, which stood in the way of putting it back.
        """
        folder = self._file.parent
        found = _file_at(self._file)
        if found and found == self._taken:
            return
        if not found and not is_regular(folder / "run.json"):
            raise ValueError(
                f"the folder of the run {self._name!r} was moved or deleted while it was trained, so the training ends here. Put "
                f"it back to {folder} and queue again to go on from its last checkpoint; without it a new run begins."
            )
        self._lock.release()
        try:
            self._take()
        except Timeout as error:
            raise ValueError(
                f"{self._file}, which kept other processes from the run {self._name!r}, was deleted, and another one trains it "
                "since; so the training ends here."
            ) from error

    def remove_with_folder(self) -> None:
        """The lock's own file, while it is held, and the folder, in which nothing else is left.

        Whoever comes to the folder between the two has it from then on, which stays for them.
        """
        self.let_go_to_move()
        self._file.unlink(missing_ok=True)
        if not _removed(self._file.parent):
            self._lock.release()  # network disks keep a file in its folder, under another name, for as long as it is open
            _removed(self._file.parent)

    def let_go_to_move(self) -> None:
        """Before the folder is renamed, or the file removed, while it is held.

        Windows does neither with a file that is open, and so keeps it from whoever comes between. Elsewhere it stays held.
        """
        if os.name == "nt":
            self._lock.release()

    @property
    def taken(self) -> bool:
        """Whether a process holds it now. Several that look do not take each other for one; `held` waits for them."""
        if not is_regular(self._file):
            return False
        if fcntl is not None:
            try:
                return _seen_taken(self._file)
            except FileNotFoundError:  # just deleted
                return False
            except OSError as error:
                self._require_locks(error)
                if error.errno != errno.ENOSYS:  # for which the library has files that stand for locks
                    raise
        return self._tried()

    def _tried(self) -> bool:
        """To know, it is taken for a moment."""
        with _LOOKING:
            if not is_regular(self._file):
                return False
            try:
                self._lock.acquire(timeout=_GLANCE_SECONDS, poll_interval=_GLANCE_SECONDS / 5)
            except Timeout:
                return True
            self._lock.release()
            return False

    def _require_locks(self, error: OSError) -> None:
        """OSError, saying so, where it comes of a disk without locks."""
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise OSError(
                error.errno,
                f"the disk of {self._file.parent} knows no locks ({error.strerror}), which keep two processes from one run. "
                "Mount it with them, or give ComfyUI an output folder elsewhere (--output-directory)",
            ) from error


def _removed(folder: Path) -> bool:
    """Whether it went: not where something is in it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file there is: one that was put in its place is another. None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _seen_taken(file: Path) -> bool:
    """Whether a process holds the lock of a file, which this one need not be allowed to write."""
    with file.open("rb") as seen:
        try:
            fcntl.flock(seen, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which some disks say in place of it
            return True
        return False
