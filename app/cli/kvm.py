"""Finds out whether /dev/kvm can boot a guest: it boots a very small one, in a child process with a time limit.

That the file exists says nothing. A KVM without help from the processor (`kvm_pvm`, for kernels made for it) opens,
makes virtual machines, and runs a guest far into long mode. It interprets each instruction, and knows only some. So the
guest takes the steps of an ordinary kernel and sends a letter to a port at each: real mode, protected mode, long mode
with paging, memory through two addresses, a vector instruction (where such a KVM gives up, as it does in a kernel's
decompressor), CPUID as it was set, a page fault, a timer's interrupt that ends a HLT. It is not a whole kernel.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
from dataclasses import dataclass

DEVICE = "/dev/kvm"
LIMIT_SECONDS = 5
STEPS = {
    "r": "real mode",
    "p": "protected mode",
    "l": "long mode",
    "m": "paged memory",
    "v": "a vector instruction",
    "c": "CPUID",
    "f": "a page fault",
    "t": "a timer interrupt",
    "h": "waking from HLT",
}

# linux/kvm.h
GET_API_VERSION, CREATE_VM, GET_VCPU_MMAP_SIZE, GET_SUPPORTED_CPUID = 0xAE00, 0xAE01, 0xAE04, 0xC008AE05
CREATE_VCPU, SET_USER_MEMORY_REGION, SET_TSS_ADDR, CREATE_IRQCHIP = 0xAE41, 0x4020AE46, 0xAE47, 0xAE60
RUN, SET_REGS, GET_SREGS, SET_SREGS, SET_CPUID2 = 0xAE80, 0x4090AE82, 0x8138AE83, 0x4138AE84, 0x4008AE90
API_VERSION = 12
EXIT_IO, EXIT_HLT, EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTERNAL_ERROR = 2, 5, 8, 9, 17
ENDINGS = {
    EXIT_HLT: "HLT did not wait for its interrupt",
    EXIT_SHUTDOWN: "the guest crashed (triple fault)",
    EXIT_FAIL_ENTRY: "the processor refused to enter the guest",
}
LEAF, VENDOR = 0x40000000, b"bulk"  # what CPUID has to say about the hypervisor

# Where things lie in the guest's memory; the code below knows these addresses.
SIZE, CODE, GDT, GDT_POINTER, IDT_POINTER, IDT = 0x200000, 0x1000, 0x2000, 0x2100, 0x2110, 0x3000
PML4, PDPT, LOW, HIGH = 0x4000, 0x5000, 0x6000, 0x7000  # 0x8000 is the word that is written, 0x9000 the stack's end
FAULT, TIMER = CODE + 0xED, CODE + 0xFC  # of the code
GUEST = bytes.fromhex(
    "b072 e610"  # .code16        mov al,'r'; out 0x10,al
    "660f01160021"  #             lgdt [0x2100]
    "66b811000000 0f22c0"  #      mov eax,0x11; mov cr0,eax            PE
    "ea18100800"  #               jmp 0x08:0x1018
    "b810000000 8ed8 8ed0"  # 18: .code32  mov eax,0x10; mov ds,eax; mov ss,eax
    "bc00900000"  #               mov esp,0x9000
    "b070 e610"  #                'p'
    "b820060000 0f22e0"  #        mov eax,0x620; mov cr4,eax           PAE, OSFXSR, OSXMMEXCPT
    "b800400000 0f22d8"  #        mov eax,0x4000; mov cr3,eax
    "b9800000c0 0f32"  #          mov ecx,0xc0000080; rdmsr            EFER
    "0fbae808 0f30"  #            bts eax,8; wrmsr                     LME
    "b833000080 0f22c0"  #        mov eax,0x80000033; mov cr0,eax      PG, NE, ET, MP, PE
    "ea561000001800"  #           jmp 0x18:0x1056
    "0f011c2510210000"  # 56: .code64  lidt [0x2110]
    "b06c e610"  #                'l'
    "48bb8877665544332211"  #     mov rbx,0x1122334455667788
    "48891c2500800000"  #         mov [0x8000],rbx
    "48391c2500802000 756b"  #    cmp [0x208000],rbx; jne stop         the same page
    "b06d e610"  #                'm'
    "66480f6ec3 660fd4c0"  #      movq xmm0,rbx; paddq xmm0,xmm0
    "66480f7ec0 48d1e8"  #        movq rax,xmm0; shr rax
    "4839d8 7551"  #              cmp rax,rbx; jne stop
    "b076 e610"  #                'v'
    "b800000040 0fa2"  #          mov eax,0x40000000; cpuid
    "81fb62756c6b 753e"  #        cmp ebx,'bulk'; jne stop
    "b063 e610"  #                'c'
    "8b042500000040"  #           mov eax,[0x40000000]                 not mapped: to ed
    "bb0000e0fe"  #               mov ebx,0xfee00000                   the local APIC
    "c783f0000000ff010000"  #     mov dword [rbx+0xf0],0x1ff           on
    "c7832003000020000000"  #     mov dword [rbx+0x320],0x20           timer: vector 0x20, once
    "c783e00300000b000000"  #     mov dword [rbx+0x3e0],0xb            divided by 1
    "c78380030000e8030000"  #     mov dword [rbx+0x380],1000           begin
    "fb f4"  #                    sti; hlt                             to fc
    "b068 e610"  #                'h'
    "b02e e610"  # stop:          '.'
    "4883c408 4883042407"  # ed:  add rsp,8; add qword [rsp],7         over the error code and the instruction
    "b066 e610 48cf"  #           'f'; iretq
    "c783b000000000000000"  # fc: mov dword [rbx+0xb0],0               end of interrupt
    "b074 e610 48cf"  #           't'; iretq
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """`reached` are the letters that the guest sent. `refusal` is None when the guest reached its end."""

    reached: str
    refusal: str | None


def try_guest(device: str = DEVICE, code: bytes = GUEST, limit_seconds: float = LIMIT_SECONDS) -> Attempt:
    """Boots the guest in a child process. The virtual machine ends with that process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, limit_seconds)
            os.write(write, b"\n" + (_boot(device, code, write) or "").encode())
        except OSError as error:
            os.write(write, b"\n" + (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        reached, ended, refusal = file.read().decode().partition("\n")
    _, status = os.waitpid(pid, 0)
    if not ended:
        said = f"it did not end within {limit_seconds:g} s" if os.WIFSIGNALED(status) else "the attempt died"
        return Attempt(reached, said)
    return Attempt(reached, refusal or None)


def is_supported() -> bool:
    return platform.machine() == "x86_64"


def _boot(device: str, code: bytes, progress: int) -> str | None:
    """Why the guest did not come to its end. Raises OSError."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, GET_API_VERSION)
    if version != API_VERSION:
        return f"it speaks version {version} of KVM's interface, not {API_VERSION}"
    machine = fcntl.ioctl(kvm, CREATE_VM, 0)
    fcntl.ioctl(machine, SET_TSS_ADDR, 0x10000000)  # pages behind the memory that real mode on Intel wants
    fcntl.ioctl(machine, CREATE_IRQCHIP)
    memory = _memory(code)
    region = struct.pack("IIQQQ", 0, 0, 0, SIZE, ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    fcntl.ioctl(machine, SET_USER_MEMORY_REGION, region)
    processor = fcntl.ioctl(machine, CREATE_VCPU, 0)
    fcntl.ioctl(processor, SET_CPUID2, bytearray(_cpuid(kvm)))
    state = bytearray(0x138)
    fcntl.ioctl(processor, GET_SREGS, state)
    state[0:8], state[12:14] = bytes(8), bytes(2)  # cs: base and selector
    fcntl.ioctl(processor, SET_SREGS, bytes(state))
    fcntl.ioctl(processor, SET_REGS, struct.pack("18Q", *[0] * 16, CODE, 2))  # rip, rflags
    shared = mmap.mmap(processor, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
    return _run(processor, shared, progress)


def _run(processor: int, shared: mmap.mmap, progress: int) -> str | None:
    for step, name in STEPS.items():
        fcntl.ioctl(processor, RUN, 0)
        (reason,) = struct.unpack_from("I", shared, 8)
        if reason == EXIT_INTERNAL_ERROR:
            return f"KVM could not interpret an instruction (internal error {struct.unpack_from('I', shared, 32)[0]})"
        if reason != EXIT_IO:
            return ENDINGS.get(reason, f"KVM gave it up with reason {reason}")
        (where,) = struct.unpack_from("Q", shared, 40)
        if shared[where] != ord(step):
            return f"{name} did not do what it has to"
        os.write(progress, step.encode())
    return None


def _memory(code: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, SIZE)

    def put(address: int, *words: int) -> None:
        struct.pack_into(f"{len(words)}Q", memory, address, *words)

    memory[CODE : CODE + len(code)] = code
    put(GDT, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF)  # 8: code32, 10: data, 18: code64
    struct.pack_into("<HI", memory, GDT_POINTER, 31, GDT)
    struct.pack_into("<HQ", memory, IDT_POINTER, 0x21 * 16 - 1, IDT)
    for vector, entry in ((14, FAULT), (0x20, TIMER)):
        put(IDT + vector * 16, entry | 0x18 << 16 | 0x8E00 << 32, 0)
    put(PML4, PDPT | 3)
    put(PDPT, LOW | 3, 0, 0, HIGH | 3)
    put(LOW, 0x83, 0x83)  # two addresses of the same 2 MiB
    put(HIGH + (0xFEE00000 >> 21 & 511) * 8, 0xFEE00000 | 0x93)  # the local APIC, not cached
    return memory


def _cpuid(kvm: int) -> bytes:
    """What KVM offers, and our own word in the hypervisor's place."""
    room = 256
    table = bytearray(struct.pack("II", room, 0) + bytes(room * 40))
    fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, table)
    (count,) = struct.unpack_from("I", table)
    entries = [bytes(table[8 + 40 * i : 48 + 40 * i]) for i in range(count)]
    kept = [entry for entry in entries if struct.unpack_from("I", entry)[0] & 0xF0000000 != LEAF]
    ours = struct.pack("10I", LEAF, 0, 0, LEAF, int.from_bytes(VENDOR, "little"), 0, 0, 0, 0, 0)
    return struct.pack("II", len(kept) + 1, 0) + b"".join(kept) + ours
