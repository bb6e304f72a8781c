"""Copy files and folders to another machine and back, over a link that may break at any time.

A file is written beside its target, under a name made of its content's size and time, and gets
its own name when it is complete; so does a folder. What a broken link has left is found by that
name and gone on with. Every piece is written at its place in the file: what an old connection
still delivers, late, is what the new one writes there too.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cjdask.errors import LinkLostError, ProtocolError, UnreachableError
from cjdask.protocols.base import Progress
from cjdask.protocols.link import PATIENCE
from cjdask.protocols.remote import STALL, RemoteProtocol, ScriptFailed
from cjdask.protocols.trees import File, Tree, install, partial_path, scan, targets

__all__ = ["Transfer"]

Value = TypeVar("Value")

OTHER_CONTENT = 45
"""The exit code of `_FINISH` for a file that is not what was sent."""
PIECE = 1 << 18
BIG = 4 << 20
"""Bytes from which on a file goes alone, and is gone on with in its midst."""
BATCH = 32 << 20
"""Bytes of small files that go at a time."""
BATCH_FILES = 4000

_IS_FOLDER = '[ ! -d "$1" ] || echo folder'
_SIZE = 'mkdir -p -- "$1" && { [ ! -e "$2" ] || wc -c <"$2"; }'
_FINISH = """
[ "$(wc -c <"$1")" -eq "$3" ] || { echo "only a part of it came" >&2; exit 1; }
if [ "$5" ]; then
    sum=$(sha256sum <"$1") || exit
    [ "${sum%% *}" = "$5" ] || { rm -f -- "$1"; exit 45; }
fi
chmod "$4" -- "$1" && mv -fT -- "$1" "$2"
"""
_LIST = """
cd -- "$1" 2>/dev/null || exit 0
find . -type f -printf '%s %P\\0'
"""
_UNPACK = """
mkdir -p -- "$1" && tar -x -p -f - -C "$1" --no-same-owner || {
    df -Pk -- "$1" | awk 'NR == 2 && $4 < 64 { print "No space left on device" }' >&2
    exit 1
}
"""
_INSTALL = """
if [ ! -e "$2" ]; then mv -T -- "$1" "$2"; exit; fi
[ -d "$2" ] || { echo "$2 is a file, a folder cannot take its place" >&2; exit 1; }
cd -- "$1" || exit
find . -mindepth 1 -type d -exec sh -c 'for d; do mkdir -p -- "$0/$d" || exit; done' "$2" {} + ||
    exit
find . ! -type d -exec sh -c 'for f; do mv -fT -- "$f" "$0/$f" || exit; done' "$2" {} + || exit
cd / && rm -rf -- "$1"
"""
_STAT = """
for path; do
    [ -e "$path" ] || { printf '%s' "$path"; exit 44; }
done
for path; do
    printf '\\0\\0'
    find -L "$path" -printf '%y %s %T@ %m %P\\0' || exit
done
"""
_PACK = 'cd -- "$1" && exec tar -c -h -f - --no-recursion --null -T -'
_SUM = 'head -c "$2" -- "$1" | sha256sum'


class Transfer:
    """One call of upload or download."""

    def __init__(self, protocol: RemoteProtocol, progress: Progress | None) -> None:
        self._protocol = protocol
        self._sh = protocol._sh
        self._report = progress or (lambda name, done, total: None)

    def upload(self, entries: Iterable[str | os.PathLike[str]], remote_path: str) -> None:
        """Copy to the other machine."""
        names = [os.path.abspath(os.path.expanduser(os.fspath(entry))) for entry in entries]
        trees = {name: scan(name) for name in names}
        if not trees:
            return
        path = self._protocol.expand(remote_path) + ("/" if remote_path.endswith("/") else "")
        is_folder = bool(self._once(lambda: self._sh(f"look at {path}", _IS_FOLDER, path)))
        for name, target in list(targets(names, path, is_folder)):
            if trees[name].is_folder:
                self._put_folder(trees[name], target)
            else:
                self._put_file(name, trees[name].files[0], target, trees[name].mark(target))

    def download(self, entries: Iterable[str], local_path: str | os.PathLike[str]) -> None:
        """Copy from the other machine."""
        names = [self._protocol.expand(entry) for entry in entries]
        if not names:
            return
        trees = dict(zip(names, self._once(lambda: self._stat(names)), strict=True))
        local = os.path.expanduser(os.fspath(local_path))
        path = os.path.abspath(local) + ("/" if local.endswith("/") else "")
        try:
            for name, target in list(targets(names, path, os.path.isdir(path))):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if trees[name].is_folder:
                    self._get_folder(trees[name], target)
                else:
                    self._get_file(name, trees[name].files[0], target, trees[name].mark(target))
        except OSError as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"cannot download to {path}: {error}") from error

    def _once(self, operation: Callable[[], Value]) -> Value:
        return self._protocol._again(operation)

    def _stubborn(self, attempt: Callable[[], None], where: Callable[[], int]) -> None:
        """Do an attempt until it succeeds, as long as each gets further than the one before."""
        clock = self._protocol._clock
        reached, since = -1, clock()
        while True:
            try:
                attempt()
                return
            except LinkLostError:
                if where() > reached:
                    reached, since = where(), clock()
                elif clock() - since > PATIENCE:
                    raise

    # -- there ---------------------------------------------------------------------------------

    def _put_file(self, local: str, file: File, target: str, mark: str) -> None:
        part, done = partial_path(target, mark), [0]
        resumed = [False]

        def attempt() -> None:
            folder = os.path.dirname(target)
            said = self._sh(f"write {target}", _SIZE, folder, part)
            offset = int(said) if said.strip() else 0
            if offset > file.size:
                self._sh(f"write {target}", 'rm -f -- "$1"', part)
                offset = 0
            resumed[0] = resumed[0] or offset > 0
            done[0] = offset
            if offset < file.size or not offset:
                pieces = self._pieces(local, file, offset, done)
                self._protocol._write_at(part, offset, pieces)
            checksum = _sha256(local, file.size) if resumed[0] else ""
            args = (part, target, str(file.size), f"{file.mode & 0o777:o}", checksum)
            try:
                self._sh(f"write {target}", _FINISH, *args, stall=STALL)
            except ScriptFailed as error:
                if error.code != OTHER_CONTENT:
                    raise
                resumed[0] = False  # what was there was not the begin of this file
                attempt()

        with self._removing(part):
            self._stubborn(attempt, lambda: done[0])
        self._report(local, file.size, file.size)

    @contextmanager
    def _removing(self, path: str) -> Iterator[None]:
        """Remove what is there of something that cannot be copied; not where the link is lost."""
        try:
            yield
        except (LinkLostError, UnreachableError):
            raise
        except ProtocolError:
            with suppress(ProtocolError):
                self._sh(f"remove {path}", 'rm -rf -- "$1"', path)
            raise

    def _pieces(self, local: str, file: File, offset: int, done: list[int]) -> Iterator[bytes]:
        with open(local, "rb") as stream:
            stream.seek(offset)
            while piece := stream.read(min(PIECE, file.size - done[0])):
                yield piece
                done[0] += len(piece)
                self._report(local, done[0], file.size)
            info = os.fstat(stream.fileno())
        if done[0] != file.size or str(info.st_mtime_ns) != file.modified:
            raise ProtocolError(f"{local} was changed while it was copied; copy it again")

    def _put_folder(self, tree: Tree, target: str) -> None:
        stage = partial_path(target, tree.mark(target))
        with self._removing(stage):
            self._fill(tree, stage, target)
        self._report(tree.path, tree.size, tree.size)

    def _fill(self, tree: Tree, stage: str, target: str) -> None:
        there = self._there(stage, tree)
        for file in tree.files:
            if file.size >= BIG and file.name not in there:
                place = os.path.join(stage, file.name)
                self._put_file(tree.full(file.name), file, place, tree.mark(file.name))
        done = [0]

        def attempt() -> None:
            there = self._there(stage, tree)
            missing = [file for file in tree.files if file.name not in there]
            for batch in _batches(missing):
                self._sh(
                    f"write {target}", _UNPACK, stage, source=[_pack(tree, batch)], stall=STALL
                )
                done[0] += len(batch)
                self._report(tree.path, sum(f.size for f in batch), tree.size)
            self._sh(f"write {target}", _INSTALL, stage, target, stall=STALL)

        self._stubborn(attempt, lambda: done[0])

    def _there(self, stage: str, tree: Tree) -> set[str]:
        """Return the files of a folder that are complete there."""
        sizes = {file.name: file.size for file in tree.files}
        said = self._once(lambda: self._sh(f"look at {stage}", _LIST, stage))
        pairs = (os.fsdecode(entry).partition(" ") for entry in said.split(b"\0") if entry)
        return {name for size, _, name in pairs if sizes.get(name) == int(size)}

    # -- and back ------------------------------------------------------------------------------

    def _stat(self, paths: list[str]) -> list[Tree]:
        """Ask what there is to copy."""
        said = self._sh(f"read {paths[0]}", _STAT, *paths)
        trees: list[Tree] = []
        begins = True
        for entry in said.split(b"\0"):
            if not entry:
                begins = True
                continue
            kind, size, modified, mode, name = os.fsdecode(entry).split(" ", 4)
            if begins:
                trees.append(Tree(paths[len(trees)], kind == "d"))
                begins = False
            if kind == "d":
                trees[-1].folders[name] = int(mode, 8)
            elif kind == "f":
                trees[-1].files.append(File(name, int(size), modified, int(mode, 8)))
            else:
                path = trees[-1].full(name)
                raise ProtocolError(
                    f"cannot download {path} from {self._protocol.host}: it is neither a file nor "
                    "a folder, or a link that leads nowhere"
                )
        return trees

    def _get_file(self, path: str, file: File, target: str, mark: str) -> None:
        part = partial_path(target, mark)
        with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as stream:
            resumed = stream.seek(0, os.SEEK_END) > 0
            if stream.tell() > file.size:
                stream.truncate(0)

            def attempt() -> None:
                offset = stream.seek(0, os.SEEK_END)

                def sink(data: bytes) -> None:
                    stream.write(data)
                    self._report(path, stream.tell(), file.size)

                if offset < file.size:
                    self._protocol._read_from(path, offset, file.size - offset, sink)
                stream.flush()

            self._stubborn(attempt, stream.tell)
            if stream.tell() == file.size and resumed and not self._same(path, part, file.size):
                stream.truncate(0)  # what was here was not the begin of that file
                self._stubborn(attempt, stream.tell)
            if stream.tell() != file.size:
                raise ProtocolError(f"{path} was changed while it was copied; copy it again")
            os.fchmod(stream.fileno(), file.mode & 0o777)
            os.fsync(stream.fileno())
        os.replace(part, target)
        self._report(path, file.size, file.size)

    def _same(self, path: str, part: str, size: int) -> bool:
        said = self._once(lambda: self._sh(f"read {path}", _SUM, path, str(size), stall=STALL))
        return said.split()[0].decode() == _sha256(part, size)

    def _get_folder(self, tree: Tree, target: str) -> None:
        if os.path.exists(target) and not os.path.isdir(target):
            raise ProtocolError(f"{target} is a file, a folder cannot take its place")
        stage = partial_path(target, tree.mark(target))
        for name in sorted(tree.folders):
            os.makedirs(os.path.join(stage, name), exist_ok=True)
        missing = [
            file
            for file in tree.files
            if not os.path.exists(path := os.path.join(stage, file.name))
            or os.path.getsize(path) != file.size
        ]
        for file in missing:
            if file.size >= BIG:
                place = os.path.join(stage, file.name)
                self._get_file(tree.full(file.name), file, place, tree.mark(file.name))
        done = tree.size - sum(file.size for file in missing if file.size < BIG)
        for batch in _batches([file for file in missing if file.size < BIG]):
            names = [b"".join(os.fsencode(file.name) + b"\0" for file in batch)]
            packed = self._once(
                lambda names=names: self._sh(  # type: ignore[misc]
                    f"read {tree.path}", _PACK, tree.path, source=names, stall=STALL
                )
            )
            _unpack(packed, batch, stage, tree.path)
            done += sum(file.size for file in batch)
            self._report(tree.path, done, tree.size)
        for name, mode in sorted(tree.folders.items(), reverse=True):
            os.chmod(os.path.join(stage, name), mode & 0o777 | 0o700)
        install(stage, target)
        self._report(tree.path, tree.size, tree.size)


def _batches(files: list[File]) -> Iterator[list[File]]:
    """Yield the small files in groups; one group at least, for folders without any file."""
    batch: list[File] = []
    size = 0
    for file in files:
        if batch and (size + file.size > BATCH or len(batch) >= BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    yield batch


def _pack(tree: Tree, files: list[File]) -> bytes:
    """Return an archive of these files of a folder here, and of all its folders."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, mode in tree.folders.items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.mode = tarfile.DIRTYPE, mode & 0o777 | 0o700
            tar.addfile(member)
        for file in files:
            member = tarfile.TarInfo(f"./{file.name}")
            member.size, member.mode = file.size, file.mode & 0o777
            path = tree.full(file.name)
            with open(path, "rb") as stream:
                content = stream.read(file.size)
                changed = str(os.fstat(stream.fileno()).st_mtime_ns) != file.modified
            if changed or len(content) != file.size:
                raise ProtocolError(f"{path} was changed while it was copied; copy it again")
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _unpack(packed: bytes, files: list[File], stage: str, path: str) -> None:
    """Write the files of an archive: those that were asked for and no others."""
    wanted = {file.name: file for file in files}
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for member in tar:
            file = wanted.pop(member.name, None)
            content = tar.extractfile(member) if file is not None and member.isreg() else None
            if file is None or content is None:
                raise ProtocolError(f"{member.name!r} in {path} was not asked for")
            data = content.read()
            if len(data) != file.size:
                raise ProtocolError(f"{path}/{file.name} was changed while it was copied")
            place = Path(stage, file.name)
            place.write_bytes(data)
            place.chmod(file.mode & 0o777)
    if wanted:
        raise ProtocolError(f"{path}/{min(wanted)} did not come; copy it again")


def _sha256(path: str, size: int) -> str:
    """Return the checksum of the first bytes of a file here."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while size and (piece := stream.read(min(PIECE, size))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()
