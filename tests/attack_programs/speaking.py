"""For attack programs that speak on the pipe to the tests, in its own protocol or in none."""

import os
import stat
import struct
import sys

codec = sys.modules.get("selectkd_eval.sandbox.codec")
ends = []
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode) or stat.S_ISFIFO(os.fstat(fd).st_mode):
            ends.append(fd)
    except OSError:
        pass


def write(data):
    for fd in ends:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]


def say(body):
    write(struct.pack("<I", len(body)) + body)


def tell(value, handle=(0, 31, 7)):
    say(codec.encode(value, 1 << 24, lambda _: handle))
