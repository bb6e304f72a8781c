"""Files and folders of this machine to copy: what there is, and how it gets to its place."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cjdask.errors import ProtocolError
from cjdask.protocols.base import Progress

__all__ = ["File", "Tree", "copy", "install", "partial_path", "scan", "targets"]


@dataclass(frozen=True)
class File:
    """One file to copy; ``name`` is its path in its tree, empty where it is all of it."""

    name: str
    size: int
    modified: str
    mode: int


@dataclass
class Tree:
    """A file, or a folder with all that is in it: ``folders`` are paths with their modes."""

    path: str
    is_folder: bool
    files: list[File] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(file.size for file in self.files)

    def mark(self, target: str) -> str:
        """Return a short text that is another one for other content or another target."""
        parts = [target, *(f"{f.name}\0{f.size}\0{f.modified}" for f in self.files)]
        return hashlib.sha256("\1".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def full(self, name: str) -> str:
        """Return the path of something in it."""
        return os.path.join(self.path, name) if name else self.path


def partial_path(target: str, mark: str) -> str:
    """Return where what is on its way to a path is kept until it is complete."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:180]}.cjdask-{mark}")


def scan(path: str) -> Tree:
    """Return what is to be copied at a path here; links are followed.

    Raises:
        FileNotFoundError: there is nothing, or a link in it leads to nothing.
        ProtocolError: something in it is neither file nor folder, or a folder is in itself.
    """
    info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        return Tree(path, False, [_file(path, "", info)])
    tree = Tree(path, True, folders={"": stat.S_IMODE(info.st_mode)})
    _fill(tree, path, "", ((info.st_dev, info.st_ino),))
    return tree


def _fill(tree: Tree, path: str, name: str, above: tuple[tuple[int, int], ...]) -> None:
    for entry in sorted(os.listdir(path)):
        inner, place = os.path.join(path, entry), os.path.join(name, entry)
        info = os.stat(inner)
        if not stat.S_ISDIR(info.st_mode):
            tree.files.append(_file(inner, place, info))
            continue
        own = (info.st_dev, info.st_ino)
        if own in above:
            raise ProtocolError(f"cannot copy {inner}: it is a link to a folder that it is in")
        tree.folders[place] = stat.S_IMODE(info.st_mode)
        _fill(tree, inner, place, (*above, own))


def _file(path: str, name: str, info: os.stat_result) -> File:
    if not stat.S_ISREG(info.st_mode):
        raise ProtocolError(f"cannot copy {path}: it is neither a file nor a folder")
    return File(name, info.st_size, str(info.st_mtime_ns), stat.S_IMODE(info.st_mode))


def targets(entries: Iterable[str], path: str, is_folder: bool) -> Iterator[tuple[str, str]]:
    """Yield each entry with the path that it goes to.

    Raises:
        ValueError: two entries would get the same name.
    """
    names = list(entries)
    into = is_folder or path.endswith("/") or len(names) > 1
    seen: dict[str, str] = {}
    for entry in names:
        target = os.path.join(path, os.path.basename(os.path.normpath(entry))) if into else path
        target = os.path.normpath(target)
        if target in seen and seen[target] != entry:
            raise ValueError(f"{seen[target]!r} and {entry!r} would both become {target!r}")
        seen[target] = entry
        yield entry, target


def install(stage: str, target: str) -> None:
    """Put a complete folder in its place here: as a whole, or file by file into one there."""
    if not os.path.lexists(target):
        os.rename(stage, target)
        return
    for folder, folders, files in os.walk(stage, topdown=False):
        place = os.path.normpath(os.path.join(target, os.path.relpath(folder, stage)))
        os.makedirs(place, exist_ok=True)
        for name in files:
            os.replace(os.path.join(folder, name), os.path.join(place, name))
        for name in folders:
            Path(folder, name).rmdir()
    os.rmdir(stage)


def copy(entries: list[str], path: str, progress: Progress | None = None) -> None:
    """Copy files and folders here into a folder, or one to a path; see `Protocol.upload`.

    Raises:
        FileNotFoundError: an entry is not there; nothing was copied.
        ProtocolError: it cannot be copied.
    """
    names = [os.path.abspath(os.path.expanduser(entry)) for entry in entries]
    trees = {name: scan(name) for name in names}
    place = os.path.expanduser(path)
    whole = os.path.abspath(place) + ("/" if place.endswith("/") else "")
    for name, target in list(targets(names, whole, os.path.isdir(whole))):
        if os.path.exists(target) and os.path.samefile(name, target):
            continue
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _copy(trees[name], target)
        except OSError as error:
            raise ProtocolError(f"cannot copy {name} to {target}: {error}") from error
        if progress is not None:
            progress(name, trees[name].size, trees[name].size)


def _copy(tree: Tree, target: str) -> None:
    if tree.is_folder and os.path.exists(target) and not os.path.isdir(target):
        raise NotADirectoryError(20, "it is a file, a folder cannot take its place", target)
    part = partial_path(target, tree.mark(target))
    for name in sorted(tree.folders):
        os.makedirs(os.path.join(part, name), exist_ok=True)
    for file in tree.files:
        place = os.path.join(part, file.name) if file.name else part
        shutil.copyfile(tree.full(file.name), place)
        os.chmod(place, file.mode & 0o777)
    for name, mode in sorted(tree.folders.items(), reverse=True):
        os.chmod(os.path.join(part, name), mode & 0o777 | 0o700)
    if tree.is_folder:
        install(part, target)
    else:
        os.replace(part, target)
