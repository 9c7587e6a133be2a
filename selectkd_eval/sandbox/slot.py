"""Where may a program write? Its own directory, empty when it starts and emptied whatever it did to it.

The directory's inode stays the same from program to program, so that the Landlock rule for it is made once. No
process of the program lives any more when it is emptied: there is nobody to race with.
"""

from __future__ import annotations

import contextlib
import os
import stat

MOST_BYTES = 64 << 20  # of all files of one program together; the limit per file is the kernel's to hold
MOST_FILES = 10_000
_MOST_PENDING = 500  # directories side by side, each of which takes a descriptor to look into
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Slot:
    """One directory under `root`; `path` changes only when a program left something that cannot be removed.

    `root` itself is closed to writing, so that even where Landlock is missing and the program runs as the owner of
    `root`, it can neither move its directory away nor leave anything beside it for the next program.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.renew()

    def renew(self) -> None:
        """Go on in a fresh directory; the old one is tried again when the work root is removed."""
        os.chmod(self.root, 0o711)
        self.path = make_directory(self.root, "run-")
        os.chmod(self.root, 0o511)  # a child may run as another user, who must reach the directory inside

    def empty(self) -> None:
        """Remove everything inside; raises OSError when something cannot be removed."""
        empty(self.path)

    def overfull(self) -> bool:
        """Whether the program has filled more than it may; a look of bounded cost, at whatever it has built.

        A directory that can no longer be looked into (tier external, without a filter) counts as full.
        """
        files = size = 0
        try:
            pending = [os.open(self.path, _DIRECTORY)]
        except OSError:
            return True
        try:
            while pending:
                place = pending.pop()
                try:
                    with os.scandir(place) as entries:
                        for entry in entries:
                            files += 1
                            if files > MOST_FILES or len(pending) > _MOST_PENDING:
                                return True
                            with contextlib.suppress(OSError):  # gone again, or closed to its owner
                                size += entry.stat(follow_symlinks=False).st_blocks * 512
                                if entry.is_dir(follow_symlinks=False):
                                    pending.append(os.open(entry.name, _DIRECTORY, dir_fd=place))
                finally:
                    os.close(place)
        finally:
            for place in pending:
                os.close(place)
        return size > MOST_BYTES


def make_directory(root: str, prefix: str) -> str:
    """A new directory under `root`, for its owner alone. (`tempfile` would load far more than it does here.)"""
    path = f"{root}/{prefix}{os.urandom(8).hex()}"
    os.mkdir(path, 0o700)
    return path


def empty(directory: str) -> None:
    """Remove all that `directory` holds: unreadable, looping, of any kind and nested to any depth.

    Directories are moved up to the top before they are emptied, so that neither a recursion limit nor the length of
    a path can be reached. Links are removed, never followed.
    """
    top = os.open(directory, _DIRECTORY)
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
    inner = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if not stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                os.unlink(child, dir_fd=inner)
                continue
            with contextlib.suppress(OSError):
                os.rmdir(child, dir_fd=inner)
                continue
            os.chmod(child, 0o700, dir_fd=inner)  # moving a directory writes to it
            moved = _move_up(top, inner, child, moved)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return moved


def _move_up(top: int, inner: int, child: str, moved: int) -> int:
    """Move a directory into `top` under the first free number above `moved`, and return that number."""
    while True:
        moved += 1
        try:
            os.rename(child, f".moved-{moved}", src_dir_fd=inner, dst_dir_fd=top)
        except OSError:
            if not _exists(top, f".moved-{moved}"):  # else the program has made an entry of that very name
                raise
        else:
            return moved


def _exists(top: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=top)
    except FileNotFoundError:
        return False
    return True
