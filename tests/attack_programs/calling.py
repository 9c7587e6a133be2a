"""For attack programs that make system calls by number: x86-64 and aarch64, - where the architecture has none."""

import ctypes
import errno
import os

NUMBERS_TEXT = """
fork 57 -          vfork 58 -        clone 56 220      clone3 435 435     execve 59 221       execveat 322 281
ptrace 101 117     process_vm_readv 310 270            process_vm_writev 311 271              kcmp 312 272
pidfd_open 434 434 pidfd_getfd 438 438                 pidfd_send_signal 424 424              process_madvise 440 440
mount 165 40       umount2 166 39    pivot_root 155 41 chroot 161 51      move_mount 429 429  open_tree 428 428
fsopen 430 430     fsconfig 431 431  fsmount 432 432   fspick 433 433     mount_setattr 442 442
unshare 272 97     setns 308 268     swapon 167 224    acct 163 89        init_module 175 105 finit_module 313 273
delete_module 176 106                kexec_load 246 104                   open_by_handle_at 304 265
name_to_handle_at 303 264            fanotify_init 300 262                quotactl 179 60     quotactl_fd 443 443
settimeofday 164 170                 clock_settime 227 112                adjtimex 159 171    sethostname 170 161
setdomainname 171 162                iopl 172 -        ioperm 173 -       syslog 103 116      bpf 321 280
perf_event_open 298 241              userfaultfd 323 282                  io_uring_setup 425 425
io_setup 206 0     keyctl 250 219    add_key 248 217   request_key 249 218                    memfd_create 319 279
memfd_secret 447 447                 shmget 29 194     semget 64 190      msgget 68 186       mq_open 240 180
chmod 90 -         fchmodat 268 53   fchmodat2 452 452 fchownat 260 54    utimensat 280 88    utime 132 -
setxattr 188 5     lsetxattr 189 6   setxattrat 463 463                   removexattrat 466 466
file_setattr 469 469                 mknodat 259 33    sched_setaffinity 203 122              sched_setattr 314 274
setpriority 141 140                  ioprio_set 251 30 prlimit64 302 261  rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240            tgkill 234 131    tkill 200 130      kill 62 129         move_pages 279 239
migrate_pages 256 238                socket 41 198     socketpair 53 199  setpgid 109 154     capget 125 90
"""
_words = NUMBERS_TEXT.split()
_column = 1 if os.uname().machine == "x86_64" else 2
NUMBERS = {_words[i]: int(_words[i + _column]) for i in range(0, len(_words), 3) if _words[i + _column] != "-"}
_libc = ctypes.CDLL(None, use_errno=True)
reached = []


def call(name, *arguments):
    """The result, or minus the error's number."""
    ctypes.set_errno(0)
    whole = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _libc.syscall(ctypes.c_long(NUMBERS[name]), *whole)
    return -ctypes.get_errno() if result == -1 else result


def ask(name, *arguments):
    """Notes the call as reached unless it is not there or not for us: otherwise the kernel looked at the arguments."""
    if name in NUMBERS and call(name, *arguments) not in (-errno.EPERM, -errno.EACCES, -errno.ENOSYS):
        reached.append(name)
