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

SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435

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
}

LOAD_WORD = 0x20
JUMP_EQUAL = 0x15
JUMP_AT_LEAST = 0x35
JUMP_BITS = 0x45
RETURN = 0x06
ALLOW = 0x7FFF0000
KILL = 0x80000000
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_FIRST_ARGUMENT = 0, 4, 16


def deny_program(machine: str) -> bytes | None:
    """The filter for ``machine`` (as ``uname`` calls it); None for one without a table here."""
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
    program += [
        _op(JUMP_EQUAL, CLONE[machine], 0, 3),
        _op(LOAD_WORD, OFFSET_FIRST_ARGUMENT),
        _op(JUMP_BITS, CLONE_THREAD, 4, 0),
        _refuse(errno.EPERM),
        _op(JUMP_EQUAL, SOCKET[machine], 0, 2),
        _op(LOAD_WORD, OFFSET_FIRST_ARGUMENT),
        _op(JUMP_EQUAL, AF_UNIX, 0, 1),
        _op(RETURN, ALLOW),
        _refuse(errno.EPERM),
    ]
    return b"".join(program)


def _op(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _refuse(number: int) -> bytes:
    return _op(RETURN, 0x00050000 | number)
