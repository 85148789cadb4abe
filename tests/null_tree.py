"""A file system in memory: nodes, and the resolution of a path as the kernel does it (path_resolution(7))."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from app.core.errors import AccessDenied, InvalidRequest, NotFound, WrongType
from app.core.files import FileKind, FileStat, shown

LONGEST_PATH, LONGEST_NAME, LINKS = 4095, 255, 40
_inodes = count(2)


@dataclass(eq=False)
class Node:
    """`read_only`: nothing in it or below it can be changed. `fixed`: a mount point, which cannot be deleted."""

    kind: FileKind
    mode: int
    content: bytes | bytearray = b""
    target: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    modified_ns: int = field(default_factory=time.time_ns)
    inode: int = field(default_factory=lambda: next(_inodes))
    read_only: bool = False
    fixed: bool = False

    @property
    def stat(self) -> FileStat:
        size = len(self.target) if self.kind is FileKind.SYMLINK else len(self.content)
        return FileStat(self.kind, size, self.mode, self.modified_ns, self.inode)

    @property
    def is_directory(self) -> bool:
        return self.kind is FileKind.DIRECTORY

    def touch(self) -> None:
        self.modified_ns = time.time_ns()


def directory(mode: int = 0o755, *, read_only: bool = False, fixed: bool = False) -> Node:
    return Node(FileKind.DIRECTORY, mode, read_only=read_only, fixed=fixed)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: `name` in the last of `parents`, root first. `node` None: nothing is there. A path that ends
    in a directory by another way than its name (`.`, `..`, `/`) has no name."""

    parents: tuple[Node, ...]
    name: bytes
    node: Node | None

    @property
    def parent(self) -> Node:
        return self.parents[-1]

    def check_change(self) -> None:
        """Raises AccessDenied."""
        if any(parent.read_only for parent in self.parents) or not self.parent.mode & 0o200:
            raise AccessDenied(f"{shown(self.name)}: the directory is read-only")

    def put(self, node: Node) -> None:
        self.check_change()
        self.parent.children[self.name] = node
        self.parent.touch()

    def remove(self) -> None:
        self.check_change()
        del self.parent.children[self.name]
        self.parent.touch()


class Tree:
    def __init__(self) -> None:
        self.root = directory(fixed=True)
        self.home = directory(fixed=True)
        self.root.children = {
            b"workspace": self.home,
            b"tmp": directory(0o1777, fixed=True),
            b"usr": directory(read_only=True, fixed=True),
            b"dev": directory(read_only=True, fixed=True),
        }
        self.root.children[b"dev"].children[b"null"] = Node(FileKind.CHARACTER_DEVICE, 0o666)

    def find(self, path: bytes, *, follow: bool = True, make: list[Place] | None = None) -> Place:
        """Where `path` leads; with `follow` through a link at its end too. With `make` missing parents are made, and
        each is put there. Raises NotFound, WrongType, AccessDenied, InvalidRequest."""
        if not 0 < len(path) <= LONGEST_PATH or b"\0" in path:
            raise InvalidRequest.at("query/path", "must have 1 to 4095 bytes, none of them NUL")
        into = path.rsplit(b"/", 1)[-1] in {b"", b".", b".."}  # then the end must be a directory
        stack = [self.root] if path.startswith(b"/") else [self.root, self.home]
        left, links = _parts(path), 0
        while left:
            name = left.pop()
            if name == b"..":
                stack = stack[:-1] or stack
                continue
            node = self._enter(stack[-1], name, path)
            if node is None and left and make is not None:
                place, node = Place(tuple(stack), name, None), directory()
                place.put(node)
                make.append(place)
            if node is None:
                if left:
                    raise NotFound("file", shown(path))
                return Place(tuple(stack), name, None)
            if node.kind is FileKind.SYMLINK and (left or follow or into):
                if (links := links + 1) > LINKS:
                    raise InvalidRequest.at("query/path", "leads through too many links")
                stack = [self.root] if node.target.startswith(b"/") else stack
                left += _parts(node.target)
            elif left or into:
                if not node.is_directory:
                    raise WrongType(node.kind, f"{shown(name)} is no directory, but {node.kind}")
                if not left:
                    return Place(tuple(stack), name, node)
                stack.append(node)
            else:
                return Place(tuple(stack), name, node)
        return Place(tuple(stack[:-1]) or (self.root,), b"", stack[-1])

    def _enter(self, parent: Node, name: bytes, path: bytes) -> Node | None:
        if len(name) > LONGEST_NAME:
            raise InvalidRequest.at("query/path", f"has a name of more than {LONGEST_NAME} bytes")
        if not parent.is_directory:
            raise WrongType(parent.kind, f"{shown(path)} leads through a {parent.kind}")
        if not parent.mode & 0o100:
            raise AccessDenied(f"{shown(path)} leads through a directory that is closed")
        return parent.children.get(name)

    def at(self, path: bytes, *, follow: bool = True) -> Node:
        """Raises NotFound too."""
        node = self.find(path, follow=follow).node
        if node is None:
            raise NotFound("file", shown(path))
        return node


def _parts(path: bytes) -> list[bytes]:
    """The last one first."""
    return [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]


def walk(name: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """Parents before what is in them, in the order of their bytes."""
    yield name, node
    for child, below in sorted(node.children.items()):
        yield from walk(name + b"/" + child if name else child, below)
