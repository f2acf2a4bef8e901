"""The tree as it was when a job was submitted: its diff, kept with the run, and on demand a copy that the job runs.

```
RUN_ROOT/.snapshots/DIGEST/   tracked files and untracked ones that git does not ignore, as they were
    .git/                     a repository of its own at the same commit; its objects are the original's
    .venv runs data …         links to what git ignores in the original
```
Ten submissions of one tree share one copy, and each looks whether it is whole: scratch disks are purged by age, file by
file. Files that look like keys are in neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.files import beside, fsync_dir
from tracking.redact import redact_text
from tracking.words import many, size

FOLDER = ".snapshots"
"""Where copies stand in a run root."""

_SECRET_FILE = re.compile(
    r"(?:^|/)(?:\.env(?:\..*)?|[^/]*\.env|\.netrc|_netrc|\.pypirc|\.npmrc|\.git-credentials|\.htpasswd|id_(?:rsa|dsa|ecdsa|ed25519)[^/]*"
    r"|[^/]*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|asc|gpg)|[^/]*(?:secret|credential|password|api_?key|_token)s?[^/]*"
    r"\.(?:json|ya?ml|toml|ini|txt|cfg))\Z",
    re.IGNORECASE,
)
_MAX_FILE = 2**20
_MAX_DIFF = 4 * 2**20
_MAX_COPY = 64 * 2**20
_GIT_S = 60
_LEFT_S = 3600.0
_COPIED = (stat.S_IFREG, stat.S_IFLNK)
# Without one of these, git in a copy says nothing, or something else.
_REPOSITORY = ("HEAD", "config", "index", "objects/info/alternates", "refs")


@dataclass(frozen=True)
class Tree:
    """The state of a project's tree; None and empty outside git.

    Attributes:
        root: Its root.
        commit: The commit that it started from.
        dirty: Whether tracked files differ from it.
        new: Untracked files that git does not ignore.
    """

    root: Path
    commit: str | None = None
    dirty: bool | None = None
    new: tuple[str, ...] = ()


def tree_of(root: Path) -> Tree:
    """Asks git once for the state of a tree."""
    try:
        answer = _git(
            root, "status", "--porcelain=v2", "--branch", "--untracked-files=all", "--no-renames", "-z", "--", "."
        )
    except UserError:
        return Tree(root)
    lines = [line for line in answer.split("\0") if line]
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":
        return Tree(root)
    dirty = any(line[:1] in "12u" for line in lines)
    # git names files from the top of its tree, in which the project may be a folder.
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)
    new = [os.path.relpath(top / line[2:], root) for line in lines if line.startswith("? ")]
    return Tree(root, commit, dirty, tuple(sorted(new)))


def code_diff(tree: Tree) -> str | None:
    """Reads what a tree differs by from its commit, untracked files that git does not ignore included.

    Returns:
        A patch without secrets, behind it what was left out and why; None outside git and where nothing differs.
    """
    if tree.commit is None or not (tree.dirty or tree.new):
        return None
    new, left_out = _untracked(tree, _MAX_FILE)
    text = _diff(tree, new)
    if len(text) > _MAX_DIFF:
        left_out.append(f"all behind the first {size(_MAX_DIFF)} of {size(len(text))}")
        text = text[:_MAX_DIFF] + "\n"
    notes = "".join(f"# left out: {note}\n" for note in left_out)
    return redact_text(text) + notes or None


def take_snapshot(tree: Tree, run_root: Path) -> Path:
    """Copies the tree to where jobs can run it, unless that very tree has been copied before.

    Args:
        tree: The project's tree.
        run_root: Where run folders are, on a shared disk.

    Returns:
        The root of the copy.

    Raises:
        UserError: There is no git, the untracked files are too large, or a file cannot be read or written.
    """
    root, commit = tree.root, tree.commit
    if commit is None:
        raise UserError(f"--snapshot: {root} is not in a git repository with a commit; leave it out")
    try:
        paths, left_out = _files(tree)
        for note in left_out:
            print(f"snapshot: left out {note}", flush=True)
        target = run_root / FOLDER / _digest(root, commit, paths)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_left(target.parent)
        if target.is_dir():
            _mend(root, commit, paths, target)
        else:
            _copy(root, commit, paths, target)
    except OSError as error:
        raise UserError(f"--snapshot: cannot copy {error.filename}: {error.strerror}") from None
    return target


def _files(tree: Tree) -> tuple[list[str], list[str]]:
    """What is copied, and notes on what is left out.

    Raises:
        UserError: The untracked files are too large.
    """
    root = tree.root
    new, left_out = _untracked(tree, None)
    large = sorted(((root / path).lstat().st_size, path) for path in new)
    if sum(count for count, _ in large) > _MAX_COPY:
        raise UserError(
            f"--snapshot: untracked files take {size(sum(count for count, _ in large))}, {large[-1][1]} alone "
            f"{size(large[-1][0])}; at most {size(_MAX_COPY)} are copied\n  next: name them in .gitignore, or move them"
        )
    listed = _git(root, "ls-files", "-z", "--cached").split("\0")
    tracked = {path for path in listed if path and os.path.lexists(root / path)}
    # A submodule is listed as a file, and is a folder.
    others = sorted(path for path in tracked if stat.S_IFMT((root / path).lstat().st_mode) not in _COPIED)
    left_out += [f"{path}: neither a file nor a link (a submodule?)" for path in others]
    return sorted({*tracked, *new} - {*others}), left_out


def _copy(root: Path, commit: str, paths: Sequence[str], target: Path) -> None:
    """Makes the copy under another name first, so that a killed command leaves no half of one."""
    work = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    work.mkdir()
    try:
        for path in paths:
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            # Without their times: a copy of an old file is not to be purged as one.
            shutil.copy(root / path, work / path, follow_symlinks=False)
        _link_the_rest(root, work)
        _make_repository(root, commit, work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # else another command was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    fsync_dir(target.parent)


def _mend(root: Path, commit: str, paths: Sequence[str], target: Path) -> None:
    """Fills the holes of a copy that is used again, and makes what is left young, for the job may wait for long."""
    holes = [path for path in paths if _kind(target / path) != _kind(root / path)]
    for path in holes:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(target / path, "new")
        try:
            shutil.copy(root / path, temporary, follow_symlinks=False)
            temporary.replace(target / path)
        finally:
            temporary.unlink(missing_ok=True)
    _link_the_rest(root, target)
    repository = [f".git/{name}" for name in _REPOSITORY]
    if not all((target / path).exists() for path in repository):
        _make_repository(root, commit, target)
    for path in (*paths, *repository):
        with suppress(OSError):  # it may be another user's
            os.utime(target / path, follow_symlinks=False)
    if holes:
        print(f"snapshot: {many(len(holes), 'file')} of {target} had gone and stand again", flush=True)


def _kind(path: Path) -> tuple[int, int] | None:
    """A file's type and size; None where there is none."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.S_IFMT(status.st_mode), status.st_size


def _link_the_rest(root: Path, work: Path) -> None:
    """Relative paths into ignored folders (`runs/NAME/bundle`, `.venv`) lead where they lead in the original."""
    listed = _git(root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory", "--", ".")
    ignored = {Path(path).parts[0] for path in listed.split("\0") if path and len(Path(path).parts) == 1}
    for name in ignored:
        if (root / name).exists() and not os.path.lexists(work / name) and not name.endswith(("_cache", "__pycache__")):
            (work / name).symlink_to((root / name).resolve())


def _make_repository(root: Path, commit: str, work: Path) -> None:
    """So that a job finds its commit and its diff as in the original, also when that has gone on."""
    objects = _git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").removesuffix("\n")
    remote = _git(root, "config", "--get", "remote.origin.url", codes=(0, 1)).strip()
    _git(work, "init", "--quiet", "--template=")
    (work / ".git" / "objects" / "info").mkdir(parents=True, exist_ok=True)
    quoted = json.dumps(objects, ensure_ascii=False)
    (work / ".git" / "objects" / "info" / "alternates").write_text(f"{quoted}\n")
    _git(work, "update-ref", "--no-deref", "HEAD", commit)
    _git(work, "reset", "--quiet", codes=(0, 1))
    if remote:
        _git(work, "config", "remote.origin.url", redact_text(remote))


def _diff(tree: Tree, new: Sequence[str]) -> str:
    root, command = tree.root, ("diff", "--no-ext-diff", "--no-color", str(tree.commit), "--", ".")
    if not new:
        return _git(root, *command)
    # git names untracked files in a diff once they are in an index, so they are put into a copy of it.
    with tempfile.TemporaryDirectory(prefix="gilbreth-index-") as folder:
        index = Path(folder) / "index"
        original = root / _git(root, "rev-parse", "--git-path", "index").removesuffix("\n")
        if original.exists():
            shutil.copy2(original, index)
        listed = "\0".join(new)
        _git(root, "add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul", index=index, given=listed)
        return _git(root, *command, index=index)


def _digest(root: Path, commit: str, paths: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{root}\0{commit}".encode())
    for path in paths:
        status = (root / path).lstat()
        link = str((root / path).readlink()) if (root / path).is_symlink() else None
        content = link.encode() if link is not None else (root / path).read_bytes()
        head = f"\0{path}\0{status.st_mode & 0o111 if link is None else 'link'}\0{len(content)}\0"
        digest.update(os.fsencode(head) + content)
    return digest.hexdigest()[:20]


def _untracked(tree: Tree, largest: int | None) -> tuple[list[str], list[str]]:
    """The untracked files that git does not ignore, and notes on those that are left out."""
    kept, left_out = [], []
    for path in tree.new:
        full = tree.root / path
        if _SECRET_FILE.search(path):
            left_out.append(f"{path}: its name is that of a file with secrets")
        elif path.endswith("/") or not (full.is_symlink() or full.is_file()):
            left_out.append(f"{path}: neither a file nor a link")
        elif largest is not None and full.lstat().st_size > largest:
            left_out.append(f"{path}: {size(full.lstat().st_size)}")
        else:
            kept.append(path)
    return kept, left_out


def _clear_left(folder: Path) -> None:
    """Removes what killed commands have left of copies."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > _LEFT_S:
            shutil.rmtree(path, ignore_errors=True)


def _git(root: Path, *arguments: str, codes: Sequence[int] = (0,), index: Path | None = None, given: str = "") -> str:
    """Runs git and returns what it printed, byte by byte.

    Args:
        root: Where.
        *arguments: For git.
        codes: Exit codes that are no fault.
        index: An index file in the place of the repository's own.
        given: What it reads.

    Raises:
        UserError: There is no git, it does not end, or it refuses.
    """
    # Many jobs may ask at once: no lock on the index. Variables of a git around this process name another tree.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"}
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=false", *arguments],
            cwd=root,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"git {arguments[0]} in {root}: {error}") from None
    if done.returncode not in codes:
        raise UserError(f"git {arguments[0]} in {root}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
