"""How does a page, a table or a figure reach the disk? Whole, or not at all.

The new content is written beside the old one and takes its place at once, so a full disk or a kill leaves the file
that was there. What is no ordinary file is never replaced: as root, a page written to /dev/null would be the end of the
device.
"""

from __future__ import annotations

from pathlib import Path

from selectkd_eval.errors import InputError


def put(path: Path, content: str | bytes) -> Path:
    """Write a file, with its directory; an InputError says why it could not be written.

    A link stays a link, and the file that it leads to is written.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file() and not target.is_dir():
            raise InputError(f"cannot write {path}: it is a device or a pipe; give a file as --out")
        beside = target.with_name(f".{target.name}.new")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give a writable --out with free space") from None
    return path
