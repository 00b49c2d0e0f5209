"""The system calls that a worker is denied, as a BPF program. Pure: makes bytes, installs nothing.

A list of what is denied, not of what is allowed: the runtime's and the C library's needs change with their versions,
while what a worker must never do does not. Numbers are those of the kernel's own tables for each architecture.
"""

from __future__ import annotations

import errno
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_CALLS = 0x40000000
CLONE_THREAD = 0x00010000
AF_UNIX = 1

SHARED_AND_ANONYMOUS = 0x21
"""Bits of mmap's flags; ``MAP_SHARED_VALIDATE`` has the first of them as well. No resource limit counts such memory."""

CLONE3 = 435
EXAMINED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); whether they are denied depends on their arguments.
    "mmap": (9, 222),
    "socket": (41, 198),
    "sendto": (44, 206),
    "clone": (56, 220),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
}

DENIED: dict[str, tuple[int, int | None]] = {
    # name: (x86_64, aarch64); None where the architecture has no such call.
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    # An address may stand in their messages, where a filter cannot look.
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    # Landlock has no say in these.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    # What they are done to may be the agent.
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "process_madvise": (440, 440),
    # Memory that no resource limit counts.
    "shmget": (29, 194),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}

LOAD_WORD = 0x20
JUMP_EQUAL = 0x15
JUMP_AT_LEAST = 0x35
JUMP_BITS = 0x45
AND = 0x54
RETURN = 0x06
ALLOW = 0x7FFF0000
KILL = 0x80000000
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARGUMENTS = 0, 4, 16


def deny_program(machine: str, pid: int) -> bytes | None:
    """The filter for process ``pid`` on ``machine`` (as ``uname`` calls it); None for one without a table here."""
    if machine not in AUDIT_ARCH:
        return None
    column = 0 if machine == "x86_64" else 1
    program = [
        _op(LOAD_WORD, OFFSET_ARCH),
        _op(JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _op(RETURN, KILL),
        _op(LOAD_WORD, OFFSET_NUMBER),
        _op(JUMP_AT_LEAST, X32_CALLS, 0, 1),
        _refuse(errno.EPERM),
        # The C library falls back to clone, whose flags can be read here.
        _op(JUMP_EQUAL, CLONE3, 0, 1),
        _refuse(errno.ENOSYS),
    ]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [_op(JUMP_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    for name, body in _examinations(pid).items():
        program += [_op(JUMP_EQUAL, EXAMINED[name][column], 0, len(body)), *body]
    return b"".join([*program, _op(RETURN, ALLOW)])


def _examinations(pid: int) -> dict[str, list[bytes]]:
    """What is done once it is one of :data:`EXAMINED`; each ends with a verdict."""
    refuse, allow = _refuse(errno.EPERM), _op(RETURN, ALLOW)
    own_only = [_argument(0), _op(JUMP_EQUAL, pid, 0, 1), allow, refuse]
    return {
        "mmap": [
            _argument(3),
            _op(AND, SHARED_AND_ANONYMOUS),
            _op(JUMP_EQUAL, SHARED_AND_ANONYMOUS, 0, 1),
            refuse,
            allow,
        ],
        "socket": [_argument(0), _op(JUMP_EQUAL, AF_UNIX, 0, 1), allow, refuse],
        # To whoever it is connected with, and to no address: a null pointer has two halves.
        "sendto": [
            *(_argument(4), _op(JUMP_EQUAL, 0, 0, 3)),
            *(_argument(4, high=True), _op(JUMP_EQUAL, 0, 0, 1)),
            *(allow, refuse),
        ],
        "clone": [_argument(0), _op(JUMP_BITS, CLONE_THREAD, 0, 1), allow, refuse],
        "kill": own_only,
        "tgkill": own_only,
        # 0 is the process itself, too.
        "prlimit64": [_argument(0), _op(JUMP_EQUAL, 0, 1, 0), _op(JUMP_EQUAL, pid, 0, 1), allow, refuse],
    }


def _argument(index: int, *, high: bool = False) -> bytes:
    """Load the lower or the higher half of an argument."""
    return _op(LOAD_WORD, OFFSET_ARGUMENTS + 8 * index + 4 * high)


def _op(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _refuse(number: int) -> bytes:
    return _op(RETURN, 0x00050000 | number)
