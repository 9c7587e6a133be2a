"""What did the teacher see at this token? Its last hidden states on disk, so that one pass over a data set is enough.

The teacher is frozen. On off-policy text, what it says about a token never changes, so from the second epoch, the
second seed or the second recipe on its forward pass is wasted. Kept are the inputs of its head (after the final norm)
at the positions that predict response tokens, in the dtype in which it runs: every divergence, temperature, gate and
weight is computed from them exactly, which a cache of its k largest probabilities does not allow. A token takes
``2 H`` bytes for a bf16 teacher, 7.2 kB at 7B parameters; its logits would take 42 times as much.

The directory is named by what decides its content. It holds `rows.bin`, the rows ``(N, H)`` of all texts one after the
other; `done.bin`, a byte per text that is 1 once its rows are safely on the disk; and `about.json`. Several processes
of one machine may fill it together, each with other texts, and later runs only read it.

It does not run the teacher (`teacher` does), and it keeps nothing of text that is generated while training.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from selectkd_eval import environment
from selectkd_eval.errors import InputError, SetupError

FORMAT = 1
FLUSH_BYTES = 2**28  # a kill costs the teacher's work on at most this much
_PLAIN: dict[int, Any] = {2: np.int16, 4: np.int32}  # numpy has no bf16: the same bits as integers
# How a full disk, a full quota and a limit on the size of files show themselves.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Text(Protocol):
    """What is read of a training example: its ids, and which of them are the response."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def response(self) -> Sequence[bool]: ...


class TeacherCache:
    """The rows of one teacher on one training set. Texts are named by their place in that set."""

    def __init__(self, directory: Path, starts: np.ndarray, width: int, dtype: torch.dtype) -> None:
        self.directory = directory
        self.width = width
        self.dtype = dtype
        self._starts = starts
        self._pending: set[int] = set()
        self._pending_bytes = 0
        self._writers: tuple[int, int] | None = None
        shape = (int(starts[-1]), width)
        self._rows = np.memmap(directory / "rows.bin", mode="r", dtype=_PLAIN[dtype.itemsize], shape=shape)
        self._done = np.memmap(directory / "done.bin", mode="r", dtype=np.uint8)

    @classmethod
    def open(
        cls, root: Path, *, fingerprint: str, examples: Sequence[Text], width: int, dtype: torch.dtype
    ) -> TeacherCache:
        """The cache of this teacher on these examples: the one there, as far as it was filled, or a new one.

        `fingerprint` says which teacher, `width` and `dtype` what its head reads. The first token of a text is
        predicted from nothing and has no row. The whole size is printed on stderr and reserved before anything is
        written. Raises SetupError when the disk has no room for it, InputError when the directory cannot be used or
        holds something else.
        """
        lengths = np.array([sum(map(bool, example.response[1:])) for example in examples], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        if starts[-1] == 0:
            raise InputError(
                f"none of the {len(examples)} training texts has a response token, so there is nothing for a teacher "
                "cache to hold: give other --data"
            )
        about = {
            "format": FORMAT,
            "teacher": fingerprint,
            "data": _digest(examples),
            "texts": len(examples),
            "tokens": int(starts[-1]),
            "width": width,
            "dtype": str(dtype).removeprefix("torch."),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
        directory = Path(root) / key
        if not _is_filled(directory, about):
            with _usable(directory), _locked(directory):
                _prepare(directory, about, marks=(lengths == 0).astype(np.uint8).tobytes())
        return cls(directory, starts, width, dtype)

    @property
    def bytes(self) -> int:
        """Size of all rows on the disk."""
        return self._rows.nbytes

    @property
    def complete(self) -> bool:
        """Whether every text has its rows, so that the teacher's forward pass is needed no more."""
        return all(self.has(int(index)) for index in np.flatnonzero(self._done == 0))

    def has(self, index: int) -> bool:
        """Whether this process can read the rows of text `index`; what others write counts once they flushed it."""
        return index in self._pending or bool(self._done[index])

    def tokens(self, index: int) -> int:
        """Response tokens of text `index`, which is its number of rows."""
        return int(self._starts[index + 1] - self._starts[index])

    def rows(self, indices: Sequence[int], *, pin: bool = False) -> Tensor:
        """The rows ``(N, H)`` of these texts one after the other, in memory; `pin` for a copy to a GPU.

        Raises KeyError for a text without rows.
        """
        for index in indices:
            if not self.has(index):
                raise KeyError(f"text {index} has no rows in {self.directory}")
        count = sum(self.tokens(index) for index in indices)
        found = torch.empty(count, self.width, dtype=self.dtype, pin_memory=pin)
        plain, at = _as_integers(found), 0
        for index in indices:
            part = self._rows[self._starts[index] : self._starts[index + 1]]
            plain[at : at + len(part)] = part
            at += len(part)
        return found

    def store(self, index: int, rows: Tensor) -> None:
        """Write the rows ``(N, H)`` of text `index`, on any device; they count as there for others after `flush`."""
        if rows.shape != (self.tokens(index), self.width) or rows.dtype != self.dtype:
            raise ValueError(
                f"text {index} takes rows of shape {(self.tokens(index), self.width)} and {self.dtype}, "
                f"not {tuple(rows.shape)} and {rows.dtype}"
            )
        data, _ = self._files()
        place = int(self._starts[index]) * self.width * self.dtype.itemsize
        with self._room():
            _write_at(data, _as_integers(rows.detach().cpu()).reshape(-1).view(np.uint8).data, place)
        self._pending.add(index)
        self._pending_bytes += rows.numel() * rows.element_size()
        if self._pending_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Bring what was stored safely to the disk, and only then mark it as done.

        In this order neither a kill nor a power cut can leave a mark without its rows.
        """
        if not self._pending:
            return
        data, done = self._files()
        with self._room():
            os.fsync(data)
            for index in sorted(self._pending):
                _write_at(done, memoryview(b"\x01"), index)
            os.fsync(done)
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        """Flush, and give the files back; the rows stay readable."""
        self.flush()
        for descriptor in self._writers or ():
            os.close(descriptor)
        self._writers = None

    def _files(self) -> tuple[int, int]:
        # Written by descriptor and read through the map: where a disk fills up behind a reservation (copy-on-write file
        # systems), a write through the map would kill the process, and this one returns an error.
        if self._writers is None:
            self._writers = (
                os.open(self.directory / "rows.bin", os.O_WRONLY),
                os.open(self.directory / "done.bin", os.O_WRONLY),
            )
        return self._writers

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise SetupError(
                f"no space left while writing the teacher cache {self.directory}: what is marked as done there is "
                "safe; free some space and run the same command again, or leave out --teacher-cache"
            ) from None


def _digest(examples: Sequence[Text]) -> str:
    """What the training set is, token by token."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.ids).to_bytes(8, "little"))
        digest.update(np.asarray(example.ids, dtype="<i8").tobytes())
        digest.update(np.asarray(example.response, dtype=np.uint8).tobytes())
    return digest.hexdigest()


def _is_filled(directory: Path, about: dict[str, Any]) -> bool:
    """Whether every text is done: such a directory is only read, so it may lie where nobody can write."""
    try:
        _require_sound(directory, about)
        return b"\x00" not in (directory / "done.bin").read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _not_usable(directory, error) from None


def _prepare(directory: Path, about: dict[str, Any], marks: bytes) -> None:
    """Reserve all the space, set the first marks, and only then say what the directory is."""
    new = not (directory / "about.json").exists()
    if not new:
        _require_sound(directory, about)
    _reserve(directory / "rows.bin", about, new)
    if new:
        _write_whole(directory / "done.bin", marks)
        _write_whole(directory / "about.json", json.dumps(about, indent=1).encode() + b"\n")


def _require_sound(directory: Path, about: dict[str, Any]) -> None:
    """An InputError unless the directory is what its name says; a FileNotFoundError when it is new."""
    text = (directory / "about.json").read_bytes()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    damage = "" if found == about else "about.json is not what was written there"
    for name, size in (("rows.bin", _size(about)), ("done.bin", about["texts"])):
        path = directory / name
        actual = path.stat().st_size if path.exists() else 0
        if not damage and actual != size:
            damage = f"{name} has {actual:,} bytes instead of {size:,}"
    if not damage and set((directory / "done.bin").read_bytes()) - {0, 1}:
        damage = "done.bin holds something else than marks"
    if damage:
        raise InputError(f"the teacher cache {directory} is damaged ({damage}): delete it, and it is filled again")


def _reserve(path: Path, about: dict[str, Any], new: bool) -> None:
    """Take the space of all rows now, where a full disk is an error message and not the end of a long run.

    Blocks that the file has already are not needed again. A new file goes again when there is no room for it.
    """
    size = _size(about)
    before = path.stat() if path.exists() else None
    missing = size - min(size, before.st_blocks * 512 if before else 0)
    if missing == 0 and not new:
        return
    what = f"the teacher cache takes {_amount(size)} ({about['tokens']:,} tokens of {about['texts']:,} texts)"
    print(f"{what} in {path.parent}", file=sys.stderr)
    free = environment.free_bytes(path.parent)
    advice = "free some space, give --teacher-cache a directory on a larger disk, or leave it out"
    if missing > free:
        raise SetupError(
            f"{what}, but {path.parent} has room for {_amount(free)} of the {_amount(missing)} still to be "
            f"written: {advice}"
        )
    try:
        with path.open("w+b" if new else "r+b") as file:
            _allocate(file.fileno(), size)
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        if new:
            path.unlink(missing_ok=True)
        raise SetupError(f"{what}, but {path.parent} cannot hold it ({os.strerror(error.errno)}): {advice}") from None


def _allocate(descriptor: int, size: int) -> None:
    """Give every byte of a file its place on the disk; bytes already there stay."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = memoryview(bytes(2**20))
    for at in range(os.fstat(descriptor).st_size, size, len(zeros)):  # macOS
        _write_at(descriptor, zeros[: size - at], at)


def _write_at(descriptor: int, content: memoryview, place: int) -> None:
    """All of the content, which one call to the system need not write."""
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def _write_whole(path: Path, content: bytes) -> None:
    """A small file, whole or not at all."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process prepares the directory, the others wait."""
    with (directory / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _usable(directory: Path) -> Iterator[None]:
    """Make the directory, and turn what a file system says about it into one sentence."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise _not_usable(directory, error) from None


def _not_usable(directory: Path, error: OSError) -> InputError | SetupError:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return SetupError(f"no space left for the teacher cache {directory} ({reason}): free some space")
    return InputError(f"cannot use the teacher cache {directory}: {reason}; give another --teacher-cache")


def _size(about: dict[str, Any]) -> int:
    return int(about["tokens"] * about["width"] * getattr(torch, about["dtype"]).itemsize)


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _as_integers(rows: Tensor) -> np.ndarray:
    """The same memory with numpy's eyes."""
    return rows.view(torch.int16 if rows.element_size() == 2 else torch.int32).numpy()
