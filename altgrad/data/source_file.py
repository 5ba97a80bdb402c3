"""What a `source` names on disk: a file of a known suffix, perhaps compressed, or a folder of such files.

    corpus.jsonl   corpus.JSONL   corpus.jsonl.gz (.bz2 .xz .zst)   parts/ with a.jsonl, b.jsonl, ...

Suffixes are read without regard to case. A compressed file is unpacked as it is read, and no further than text goes
(the limit that parquet files have). A folder's files are read in the order of their names, as one; they must be of one
kind, and nothing that could be data is passed over: what lies beside them and is no README is named and refused.
Files named after splits are refused too, since to read them as one would mix what their author kept apart.
"""

import bz2
import gzip
import hashlib
import lzma
import re
import zlib
from pathlib import Path
from typing import IO, Any

from altgrad.data.parquet_file import LEAST_ROOM, MOST_TIMES, zstd_stream

__all__ = ["FOLDED", "content_hash", "kind_of", "locate_source", "shards", "unpacked"]

FOLDED = (".gz", ".bz2", ".xz", ".zst")
"""What a compressed file's name ends in."""

_OTHERS = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x", ".tar": "tar xf", ".tgz": "tar xf", ".z": "uncompress",
           ".lz4": "lz4 -d", ".br": "brotli -d"}  # fmt: skip
_BLOCK = 1 << 20
_SPLIT = re.compile(r"(train|training|valid|validation|val|dev|test|eval)(?=[-_.0-9])", re.IGNORECASE)
_BESIDE = re.compile(r"(readme|licen[cs]e|notice|copying|dataset_infos?)(\W.*)?|.*\.md|.*\.lock", re.IGNORECASE)


def kind_of(path: Path) -> tuple[str, str]:
    """The suffix that says how a file is read and that of its compression, in lower case; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in FOLDED:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return (suffixes[-1] if suffixes else ""), ""


def locate_source(source: str, suffixes: tuple[str, ...], otherwise: str) -> Path:
    """An existing, non-empty file of one of the suffixes, or a folder of them.

    otherwise: what else a source may be, for the message. ValueError, which names what is there, for all else.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        shards(path, suffixes)
        return path
    kind, folded = kind_of(path)
    remedy = _OTHERS.get(kind)
    if remedy is not None and path.is_file():
        raise ValueError(f"{source} is compressed in a way that is not read; decompress it first ({remedy}).")
    if kind not in suffixes:
        what = f"{source} ends in none of {', '.join(suffixes)}"
        what += " before its compression" if folded else ""
        raise ValueError(f"{what}, and is not {otherwise}.")
    if folded and kind == ".parquet":
        raise ValueError(f"{source} is a compressed parquet file, which is compressed inside already; decompress it.")
    if not path.is_file():
        raise ValueError(f"{source} is not a file; give the path of one, or {otherwise}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{source} is empty (0 bytes); it needs at least one document.")
    return path


def shards(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a source: itself, or a folder's in the order of their names. ValueError as `locate_source` says."""
    if not path.is_dir():
        return [path]
    inside = sorted(each for each in path.iterdir() if not each.name.startswith((".", "_")))
    files = [each for each in inside if each.is_file() and not _BESIDE.fullmatch(each.name)]
    found = [each for each in files if kind_of(each)[0] in suffixes]
    shown = ", ".join(f"{each.name}{'/' * each.is_dir()}" for each in inside[:6]) or "nothing"
    shown += f" and {len(inside) - 6} more" if len(inside) > 6 else ""
    here = path if path.is_absolute() else f"./{path}"
    as_hub = f"if it is laid out as a Hub data set, write source: {{hub: {here}}}"
    if not found:
        raise ValueError(f"{path} is a folder without a {' or '.join(suffixes)} file; it holds {shown}; {as_hub}.")
    if other := [each for each in inside if each.is_dir()] + [each for each in files if each not in found]:
        raise ValueError(f"{path} is a folder that also holds {other[0].name}; move it out or name a file; {as_hub}.")
    if len(kinds := {kind_of(each)[0] for each in found}) > 1:
        raise ValueError(f"{path} is a folder of {' and '.join(sorted(kinds))} files ({shown}); keep one kind in it.")
    named = {match[1].lower() for each in found if (match := _SPLIT.match(each.name))}
    if len(named) > 1:
        raise ValueError(f"{path} is a folder of files named after splits ({shown}); {as_hub}, or give rows a split.")
    for each in found:
        locate_source(str(each), suffixes, "a folder of them")
    return found


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, as hex; of a folder's files, that of their names and hashes."""
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith((".", "_")))
        listed = "".join(f"{content_hash(each)}  {each.name}\n" for each in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpacked(path: Path) -> bytes:
    """A file's bytes, decompressed where its name says so. ValueError for a damaged one, and for one that unpacks to
    more than text does."""
    folded = kind_of(path)[1]
    if not folded:
        return path.read_bytes()
    packed = path.stat().st_size
    room = max(LEAST_ROOM, MOST_TIMES * packed)
    found = bytearray()
    try:
        with _opened(path, folded) as file:
            while block := file.read(_BLOCK):
                found += block
                if len(found) > room:
                    raise ValueError(f"its {packed} bytes unpack to more than {room}; text does not, so it is not read")
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} cannot be decompressed as {folded}: {reason}.") from None
    if not found:
        raise ValueError(f"{path} is empty once decompressed; it needs at least one document.")
    return bytes(found)


def _opened(path: Path, folded: str) -> IO[bytes] | Any:
    if folded == ".gz":
        return gzip.open(path)
    if folded == ".bz2":
        return bz2.open(path)
    if folded == ".xz":
        return lzma.open(path)
    return zstd_stream(path)
