"""Files written whole or not at all, and folders with checksums that reveal damage."""

import hashlib
import os
import stat
from pathlib import Path

from numpyro_neb._internal.checks import require

SUMS = "SHA256SUMS"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary one next to it, which is then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Never write through what already has its name, such as a link out of the folder.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_sums(folder: Path) -> None:
    """Writes the SHA-256 of each file of a folder to its SHA256SUMS, as `sha256sum` reads it."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items())]
    write_whole(folder / SUMS, "".join(lines).encode())


def check_sums(folder: Path) -> None:
    """Raises a ValueError that names a file which does not match SHA256SUMS.

    A folder without one passes: the process was killed before writing it.
    """
    if not (folder / SUMS).exists():
        return
    lines = (folder / SUMS).read_bytes().decode(errors="replace").removesuffix("\n").split("\n")
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = _digests(folder)
    for name in sorted(stated.keys() | found.keys()):
        if name not in stated and Path(name).name.startswith("."):
            continue  # what a desktop or a network file system leaves behind, and nothing reads
        require(name in found, f"{name} is missing")
        require(name in stated, f"{name} is not among its {SUMS}")
        require(found[name] == stated[name], f"the checksum of {name} does not match")


def check_plain(folder: Path) -> None:
    """Raises a ValueError if a folder holds anything but files and folders.

    A symbolic link would be followed elsewhere, and a pipe would block forever.
    """
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in folders + names):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another process has removed it
                continue
            link = stat.S_ISLNK(mode)
            require(not link, f"{path} is a symbolic link, and might lead elsewhere")
            plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            require(plain, f"{path} is neither a file nor a folder")


def _digests(folder):
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / SUMS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests
