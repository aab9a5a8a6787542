# SPDX-License-Identifier: MIT
"""Machine code of the stub process, by architecture."""

from __future__ import annotations

import struct

from helpers import syscalls

# The program, the same on each architecture (here in the words of x86_64):
#
#     sub $256,%rsp; mov %rsp,%rbp; mov %rbp,%rax; jmp answer   the request's address
#   loop:
#     read(0, %rbp, 256); leave unless it got something
#     load number and six arguments from (%rbp); if the number is negative: jmp store
#     syscall; jmp answer
#   store:
#     movb %sil,(%rdi); xor %eax,%eax                           for page faults
#   answer:
#     mov %rax,(%rbp); write(1, %rbp, 8); jmp loop
#   leave:
#     exit(0)
_CODE = {
    "x86_64": (62, 0, """
        4881ec000100004889e54889e8eb3c31c031ff4889eeba000100000f0585c07e
        44488b4500488b7d08488b7510488b55184c8b55204c8b45284c8b4d304885c0
        78040f05eb0540883731c048894500b801000000bf010000004889eeba080000
        000f05ebaab83c00000031ff0f05"""),
    "aarch64": (183, 0, """
        ff0304d1f3030091e003009111000014000080d2e10313aa022080d2e80780d2
        010000d41f0000f12d020054680240f9608640a9628e41a9649642a96800f8b7
        010000d40300001401000039000080d2600200f9200080d2e10313aa020180d2
        080880d2010000d4eaffff17000080d2a80b80d2010000d4"""),
    "ppc64le": (21, 2, """
        00ff2138780b3f7c780b237c600000480000603878fbe47f0001a03803000038
        02000044640083410000232c5c00814000001fe808007fe810009fe81800bfe8
        2000dfe82800ffe830001fe90000202c140080410200004414008340d000637c
        0c000048000083980000603800007ff80100603878fbe47f0800a03804000038
        020000448cffff4b000060380100003802000044"""),
    "riscv64": (243, 0, """
        130101f013040100130501006f00c0041305000093050400130600109308f003
        730000006358a004833804000335840083350401033684018336040203378402
        8337040363c60800730000006f00c0002300b500130500002330a40013051000
        930504001306800093080004730000006ff01ffa130500009308d00573000000"""),
}  # fmt: skip
"""ELF machine number, ELF flags and code; assembled with llvm-mc."""
_LOAD_AT = 0x400000
_ALIGN = 0x10000  # the largest page size there is


def supported() -> bool:
    """There is code for this architecture."""
    return syscalls.architecture() in _CODE


def _image() -> bytes:
    machine, flags, text = _CODE[syscalls.architecture()]
    code = bytes.fromhex("".join(text.split()))
    head = 64 + 2 * 56
    size = head + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    # ELF header; PT_LOAD (read, execute); PT_GNU_STACK (read, write): see elf(5).
    return b"".join((
        ident,
        struct.pack("<HHIQQQIHHHHHH",
                    2, machine, 1, _LOAD_AT + head, 64, 0, flags, 64, 56, 2, 0, 0, 0),
        struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_AT, _LOAD_AT, size, size, _ALIGN),
        struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16),
        code,
    ))  # fmt: skip
