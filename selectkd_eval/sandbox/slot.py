"""Where may a program write? Its own directory, empty when it starts and emptied whatever it did to it.

The directory's inode stays the same from program to program, so that the Landlock rule for it is made once. No
process of the program lives any more when it is emptied: there is nobody to race with.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile


MOST_BYTES = 64 << 20  # of all files of one program together; the limit per file is the kernel's to hold
MOST_FILES = 10_000


class Slot:
    """One directory under `root`; `path` changes only when a program left something that cannot be removed."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = self._make()

    def _make(self) -> str:
        return tempfile.mkdtemp(prefix="run-", dir=self.root)

    def renew(self) -> None:
        """Go on in a fresh directory; the old one is tried again when the work root is removed."""
        self.path = self._make()

    def empty(self) -> None:
        """Remove everything inside; raises OSError when something cannot be removed."""
        empty(self.path)


    def overfull(self) -> bool:
        """Whether the program has filled more than it may; a look that costs little however much there is."""
        files = size = 0
        for place, directories, names in os.walk(self.path):
            files += len(directories) + len(names)
            for name in names[:MOST_FILES]:
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
            if files > MOST_FILES or size > MOST_BYTES:
                return True
        return False


def empty(directory: str) -> None:
    """Remove all that `directory` holds: unreadable, looping, of any kind and nested to any depth.

    Directories are moved up to the top before they are emptied, so that neither a recursion limit nor the length of
    a path can be reached. Links are removed, never followed.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        moved = 0
        while names := os.listdir(top):
            for name in names:
                moved = _remove(top, name, moved)
    finally:
        os.close(top)


def _remove(top: int, name: str, moved: int) -> int:
    """Remove one entry of the directory `top`; its subdirectories go up into `top` under numbers from `moved` on."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
        os.unlink(name, dir_fd=top)
        return moved
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
        return moved
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if not stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                os.unlink(child, dir_fd=inner)
                continue
            with contextlib.suppress(OSError):
                os.rmdir(child, dir_fd=inner)
                continue
            os.chmod(child, 0o700, dir_fd=inner)  # moving a directory writes to it
            while True:
                moved += 1
                try:
                    os.rename(child, f".moved-{moved}", src_dir_fd=inner, dst_dir_fd=top)
                    break
                except OSError as error:  # the program may have made an entry of that very name
                    if not _exists(top, f".moved-{moved}"):
                        raise error
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return moved


def _exists(top: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=top)
    except FileNotFoundError:
        return False
    return True
