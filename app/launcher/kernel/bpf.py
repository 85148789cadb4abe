"""Decisions as graphs, and the classic BPF instructions that they become.

When a seccomp program is loaded, the kernel translates it and runs it once for every call number, to learn which calls
it need not ask about again. Each sandbox pays for the size of the program and for the length of the way to a number.
This is why it is a search tree with shared parts.
"""

from __future__ import annotations

from struct import pack

# An instruction and what follows it: (code, operand, next if true, next if not). One that decides nothing has only the
# first next, a return has none. Nodes are compared by value, so what two decisions have in common is laid out once.
Node = tuple[int, int, "Node | None", "Node | None"]

LOAD, AND, EQUAL, GREATER_EQUAL, ANY_BIT, JUMP, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x05, 0x06
WORD = 0xFFFFFFFF

# Of struct seccomp_data. Both machines are little-endian: the low half of an argument comes first.
NUMBER, ARCHITECTURE, ARGUMENTS, ARGUMENT_SIZE = 0, 4, 16, 8

ALLOW: Node = (RETURN, 0x7FFF0000, None, None)
KILL_PROCESS: Node = (RETURN, 0x80000000, None, None)


def refuse(errno: int) -> Node:
    return (RETURN, 0x00050000 | errno, None, None)


# Success, without the call having been made.
PRETENDED: Node = refuse(0)


def looking_at(offset: int, then: Node) -> Node:
    """Loads the word at the offset before the first test of `then`."""
    return (LOAD, offset, then, None)


def _runs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """The values as (first, last) of each run of neighbours that rise by one."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


def when(argument: int, values: tuple[int, ...], then: Node, otherwise: Node, mask: int = WORD) -> Node:
    """Goes to `then` if the low half of the argument, under the mask, is one of the values. They are tried in their
    order."""
    test = otherwise
    for first, last in reversed(_runs(values)):
        if last - first >= 2:  # from three values on, two tests of the bounds are shorter
            test = (GREATER_EQUAL, first, (GREATER_EQUAL, last + 1, test, then), test)
        else:
            for value in range(last, first - 1, -1):
                test = (EQUAL, value, then, test)
    if mask != WORD:
        test = (AND, mask, test, None)
    return looking_at(ARGUMENTS + ARGUMENT_SIZE * argument, test)


def when_any_bit(argument: int, bits: int, then: Node, otherwise: Node) -> Node:
    """Goes to `then` if the low half of the argument has one of the bits."""
    return looking_at(ARGUMENTS + ARGUMENT_SIZE * argument, (ANY_BIT, bits, then, otherwise))


def when_more(argument: int, most: int, then: Node, otherwise: Node) -> Node:
    """Goes to `then` if the low half of the argument, unsigned, is larger."""
    return looking_at(ARGUMENTS + ARGUMENT_SIZE * argument, (GREATER_EQUAL, most + 1, then, otherwise))


def when_null(argument: int, then: Node, otherwise: Node) -> Node:
    """Goes to `then` if the argument is a null pointer. Both halves count, as a valid address may have an empty low
    half."""
    low = ARGUMENTS + ARGUMENT_SIZE * argument
    return looking_at(low, (EQUAL, 0, looking_at(low + 4, (EQUAL, 0, then, otherwise)), otherwise))


def search(stretches: list[tuple[int, Node]]) -> Node:
    """Builds a balanced tree over (first number, decision), sorted and from 0 on, for the number that is loaded."""
    if len(stretches) == 1:
        return stretches[0][1]
    middle = len(stretches) // 2
    return (GREATER_EQUAL, stretches[middle][0], search(stretches[middle:]), search(stretches[:middle]))


def assemble(start: Node) -> bytes:
    """Returns the graph as an array of struct sock_filter. It is laid out from the end backwards, since jumps only lead
    forwards. The jumps of a test reach 255 instructions. For a target beyond that a near instruction takes its place: a
    copy of a return, or a plain jump, which reaches everything.
    """
    code: list[bytes] = []  # the last instruction first
    placed: dict[Node, int] = {}

    def emit(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append(pack("=HBBI", operation, if_true, if_false, operand))

    def distance(target: Node) -> int:
        return len(code) - placed[target] - 1

    def bring_near(target: Node) -> None:
        if distance(target) < 255:  # not 255 itself: the other branch may yet put its stand-in in between
            return
        if target[0] == RETURN:
            emit(RETURN, target[1])
        else:
            emit(JUMP, distance(target))
        placed[target] = len(code) - 1

    def place(node: Node) -> None:
        if node in placed:
            return
        operation, operand, then, otherwise = node
        if then is None:
            emit(operation, operand)
        elif otherwise is None:
            place(then)
            if distance(then) > 0:  # such an instruction falls through to the next
                emit(JUMP, distance(then))
            emit(operation, operand)
        else:
            place(then)
            place(otherwise)
            bring_near(then)
            bring_near(otherwise)
            emit(operation, operand, distance(then), distance(otherwise))
        placed[node] = len(code) - 1

    place(start)
    return b"".join(reversed(code))
