"""Interpret the files below a folder: images or Parquet files, their splits and classes, and files left out.

    walk(folder)  →  Tree: the files and folders     arrange(tree)  →  Layout: their splits and classes

Only `arrange` implements the rules; it opens no file. docs/howto/own_data.md describes them:

1. Image files lie in one folder per class. Class folders lie directly below the folder, or directly below its split
   folders (`SPLITS`, in any case). A split folder is one that holds class folders. Names of files never matter.
2. Images deeper than their class folder count in that class. Links are followed.
3. Parquet files name their split, in the file's name or in a folder's. If none does, all are training images.
4. Every image that is not used is counted with a reason. Ambiguous folders are refused.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
Parts = tuple[str, ...]

SPLITS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
TEST_SPLITS: tuple[Split, ...] = ("test", "validation")  # the first that exists becomes the test set
IN_ORDER: tuple[Split, ...] = ("train", *TEST_SPLITS)
ENDINGS = frozenset(".png .apng .jpg .jpeg .jpe .jfif .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm".split())
OTHER_IMAGES = frozenset(
    ".avif .cr2 .dcm .dib .dng .eps .exr .hdr .heic .heif .ico .j2k .jp2 .jxl .nef .pcx .pfm .psd .svg .tga".split()
)
ARCHIVES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst".split())
LITTER = frozenset(("thumbs.db", "desktop.ini", "icon\r"))  # files of file managers
SHARD = re.compile(  # train-00000-of-00002, or with a hash after it, as older files of the hub
    r"^(?P<name>.*?)[-_. ]?(?P<number>\d+)[-_. ]*of[-_. ]*(?P<count>\d+)(?:\D.*)?$", re.IGNORECASE
)
NAMED = 3  # examples in a message


class LayoutError(ValueError):
    """A folder without a clear meaning; the message says what to do."""


@dataclass(frozen=True)
class Tree:
    """The files and folders below a folder, with links followed. Paths are tuples of names."""

    files: Sequence[Parts]
    folders: Sequence[Parts] = ()
    unusable: Sequence[tuple[Parts, str]] = ()  # links that lead nowhere, pipes; why


@dataclass(frozen=True)
class File:
    """A file that is used."""

    parts: Parts
    label: str = ""  # its class; "" for Parquet


@dataclass(frozen=True)
class Layout:
    """The splits and classes of the files."""

    kind: Literal["images", "parquet"]
    splits: Mapping[Split, Sequence[File]]  # for images: training images, and at most one other split
    folders: Mapping[Split, str] = field(default_factory=dict)  # for images: name of the split's folder
    left_out: tuple[str, ...] = ()  # files that are not used, and why
    notes: tuple[str, ...] = ()  # other notes for the reader


def walk(folder: Path) -> Tree:
    """List the files and folders below a folder, in the order of names; links are followed.

    Raises LayoutError for a folder that cannot be listed.
    """
    files: list[Parts] = []
    folders: list[Parts] = []
    unusable: list[tuple[Parts, str]] = []

    def look(place: Path, parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise LayoutError(f"{place} cannot be listed ({error.strerror}); allow it, or remove the folder") from error
        for entry in entries:
            here = (*parts, entry.name)
            try:
                status = entry.stat()
            except OSError:
                why = "links that lead nowhere" if entry.is_symlink() else "files that cannot be read"
                unusable.append((here, why))
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    unusable.append((here, "links to a folder that they lie in"))
                    continue
                folders.append(here)
                look(place / entry.name, here, above | {identity})
            elif stat.S_ISREG(status.st_mode):
                files.append(here)
            else:
                unusable.append((here, "pipes or devices"))

    status = folder.stat()
    look(folder, (), frozenset({(status.st_dev, status.st_ino)}))
    return Tree(files, folders, unusable)


def arrange(tree: Tree) -> Layout:
    """Assign splits and classes from paths alone. Raises LayoutError if the folder is ambiguous."""
    found = _sorted_out(tree)
    if found.parquet and found.images:
        if _is_a_layout(found, tree):
            raise LayoutError(
                f"holds {_count(len(found.parquet), 'Parquet file')} ({_example(found.parquet)}) and "
                f"{_count(len(found.images), 'image')} in folders ({_example(found.images)}); keep one kind there, "
                "or give the folder of one kind"
            )
        found.leave_out(found.images, "image", "beside Parquet files, which are read instead")
    if found.parquet:
        return _of_parquet(found)
    return _of_images(found, tree)


def split_named(name: str) -> Split | None:
    """The split that a folder's name stands for, if any."""
    return SPLITS.get(name.strip().casefold())


def same_text(name: str) -> str:
    """The name in Unicode's composed form, so that both encodings of é are equal."""
    return unicodedata.normalize("NFC", name)


def shown(name: str) -> str:
    """The name in printable form: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that look the same, if any: equal except for Unicode form, surrounding blanks and invalid bytes."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(shown(same_text(name)).strip(), name)
        if other != name:
            return other, name
    return None


def alike_but_for_case(names: Iterable[str]) -> list[str]:
    """A note for each pair of names that differ only in case, or in case and surrounding blanks."""
    seen: dict[str, str] = {}
    pairs = [(seen.setdefault(same_text(name).casefold().strip(), name), name) for name in names]
    alike = [(a, b, "" if a.strip() == a and b.strip() == b else " and blanks") for a, b in pairs if a != b]
    return [f"classes {shown(a)!r} and {shown(b)!r} differ in case{blanks} only" for a, b, blanks in alike]


@dataclass
class _Found:
    """Files by kind, and notes on files left out so far."""

    images: list[Parts] = field(default_factory=list)
    parquet: list[Parts] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, files: Sequence[Parts], what: str, why: str) -> None:
        if files:
            self.left_out.append(f"{_count(len(files), what)} {why} ({_example(files)})")


def _sorted_out(tree: Tree) -> _Found:
    found = _Found()
    groups: defaultdict[tuple[str, str], list[Parts]] = defaultdict(list)
    for parts in tree.files:
        kind, ending = _kind(parts), Path(parts[-1]).suffix.casefold()
        if _is_hidden(parts):
            if kind in ("image", "Parquet file"):
                groups[kind, "hidden: a name begins with a dot"].append(parts)
        elif ending in ENDINGS:
            found.images.append(parts)
        elif kind == "Parquet file":
            found.parquet.append(parts)
        elif parts[-1].casefold() not in LITTER:
            groups[kind, NOT_READ.get(kind) or f"in a format that is not read, {ending}"].append(parts)
    for parts, why in tree.unusable:
        if not _is_hidden(parts):
            groups["entry", f"left out: {why}"].append(parts)
    for (what, why), files in groups.items():
        found.leave_out(files, what, why)
    return found


NOT_READ = {"archive": "not unpacked", "other file": "not read"}


def _kind(parts: Parts) -> str:
    """The kind of a file, by the end of its name."""
    ending = Path(parts[-1]).suffix.casefold()
    if ending in ENDINGS or ending in OTHER_IMAGES:
        return "image"
    if ending == ".parquet":
        return "Parquet file"
    return "archive" if ending in ARCHIVES else "other file"


def _is_hidden(parts: Parts) -> bool:
    return any(name.startswith(".") for name in parts)


# Folders of images


@dataclass(frozen=True)
class _Folder:
    """A folder of the first level: its own images, and those in each folder below it."""

    name: str
    own: Sequence[Parts]
    below: Mapping[str, Sequence[Parts]]

    @property
    def images(self) -> list[Parts]:
        return [*self.own, *(parts for files in self.below.values() for parts in files)]


def _first_level(images: Sequence[Parts]) -> dict[str, _Folder]:
    own: defaultdict[str, list[Parts]] = defaultdict(list)
    below: defaultdict[str, defaultdict[str, list[Parts]]] = defaultdict(lambda: defaultdict(list))
    for parts in images:
        if len(parts) == 2:
            own[parts[0]].append(parts)
        elif len(parts) > 2:
            below[parts[0]][parts[1]].append(parts)
    return {name: _Folder(name, own[name], below[name]) for name in sorted({*own, *below})}


def _is_a_layout(found: _Found, tree: Tree) -> bool:
    """Whether the images would be a data set on their own."""
    try:
        _of_images(_Found(images=found.images), tree)
    except LayoutError:
        return False
    return True


def _of_images(found: _Found, tree: Tree) -> Layout:
    top = _first_level(found.images)
    if not top:
        _raise_without_images(found)
    found.leave_out([parts for parts in found.images if len(parts) == 1], "image", "in no class folder")
    splits = _split_folders(top)
    if splits is None:
        return _of_class_folders(found, tree, top)
    return _of_split_folders(found, tree, top, splits)


def _raise_without_images(found: _Found) -> None:
    what = "holds no folder with images"
    if found.images:
        what += f"; its {_count(len(found.images), 'image')} ({_example(found.images)}) lie in no class folder"
    if found.left_out:
        what += f"; found {'; '.join(found.left_out)}"
    raise LayoutError(f"{what}. Put the images of each class in a folder of its own, or Parquet files there")


def _split_folders(top: Mapping[str, _Folder]) -> dict[Split, _Folder] | None:
    """The folders that are splits; None if all folders are classes. Raises LayoutError if both are possible."""
    named = [(split, folder) for name, folder in top.items() if (split := split_named(name))]
    others = [folder for name, folder in top.items() if split_named(name) is None]
    holding = [(split, folder) for split, folder in named if folder.below]  # folders, so that these may be classes
    is_split = any(split == "train" for split, _ in holding)
    if is_split and others and len({split for split, _ in holding}) == 1:
        name = next(folder.name for split, folder in holding if split == "train")
        if any(folder.images for folder in others):
            raise LayoutError(
                f"{shown(name)}/ holds folders of images, and so does not look like a class, but beside it lies "
                f"{shown(others[0].name)}/ with images. Move {shown(others[0].name)}/ into {shown(name)}/ if it is a "
                f"class, or away if not; rename {shown(name)}/ if that is a class"
            )
    if not is_split:
        _raise_unless_classes(named, holding)
        return None
    splits: dict[Split, _Folder] = {}
    for split, folder in named:
        if split in splits:
            raise LayoutError(
                f"{shown(splits[split].name)}/ and {shown(folder.name)}/ both name the {split} split; "
                "keep one, or join them"
            )
        splits[split] = folder
    return splits


def _raise_unless_classes(named: Sequence[tuple[Split, _Folder]], holding: Sequence[tuple[Split, _Folder]]) -> None:
    """Raise LayoutError unless folders named like splits can be classes; none is a train split with folders."""
    if holding and not all(folder.own for _, folder in holding):
        name = next(folder.name for _, folder in holding if not folder.own)
        raise LayoutError(
            f"{shown(name)}/ holds folders of images, but there is no train/ with folders of classes; put the training "
            "images there"
        )
    if len({split for split, _ in named}) > 1:
        names = " and ".join(f"{shown(folder.name)}/" for _, folder in named)
        raise LayoutError(
            f"{names} hold images, but no folders of classes; put the images of each class in a folder of its own "
            "below them, as in train/cat/1.png"
        )


def _of_class_folders(found: _Found, tree: Tree, top: Mapping[str, _Folder]) -> Layout:
    _raise_if_wrapped(top)
    for folder in top.values():
        for name in folder.below:
            if split_named(name):
                raise LayoutError(
                    f"{shown(folder.name)}/{shown(name)}/: a split below a class; put splits above classes, as in "
                    f"{shown(name)}/{shown(folder.name)}/"
                )
    _raise_if_none_directly(list(top.values()), "")
    _note_deeper(found, top.values())
    found.notes += [
        f"{shown(name)}/ holds images itself, and so is a class" for name in top if split_named(name) is not None
    ]
    classes = {folder.name: folder.images for folder in top.values()}
    _leave_out_empty(found, tree, (), classes)
    files = _labelled("", classes)
    _raise_unless_several(classes)
    found.notes += alike_but_for_case(classes)
    return Layout("images", {"train": files}, {}, tuple(found.left_out), tuple(found.notes))


def _raise_if_wrapped(top: Mapping[str, _Folder]) -> None:
    """Raise LayoutError for one folder around the split folders, as made by unpacking an archive."""
    if len(top) != 1:
        return
    (folder,) = top.values()
    within = [parts[1:] for parts in folder.images]
    splits = [name for name in folder.below if split_named(name)]
    if not folder.own and any(split_named(name) == "train" for name in splits) and any(len(p) > 2 for p in within):
        names = ", ".join(f"{shown(name)}/" for name in splits[:NAMED])
        raise LayoutError(
            f"{shown(folder.name)}/ holds the split folders ({names}); "
            f"give the folder {shown(folder.name)}/ instead of the one around it"
        )


def _of_split_folders(found: _Found, tree: Tree, top: Mapping[str, _Folder], splits: Mapping[Split, _Folder]) -> Layout:
    beside = [parts for name, folder in top.items() if folder not in splits.values() for parts in folder.images]
    found.leave_out(beside, "image", "in folders that are no split, beside the split folders")
    files: dict[Split, Sequence[File]] = {}
    classes: dict[Split, set[str]] = {}
    for split in IN_ORDER:
        folder = splits.get(split)
        if folder is None:
            continue
        if len(files) == 2:
            why = f"in {shown(folder.name)}/: the test set is {shown(splits['test'].name)}/, and validation images are "
            found.leave_out(folder.images, "image", why + "carved off the training images")
            continue
        found.leave_out(folder.own, "image", f"in no class folder of {shown(folder.name)}/")
        if not folder.below:
            continue
        below = {name: _Folder(name, *_own_and_deeper(images)) for name, images in folder.below.items()}
        if split != "train" and len(below) == 1 and len(classes["train"]) > 1:
            (only,) = below
            if same_text(only) not in classes["train"]:
                why = f"in {shown(folder.name)}/, without labels: their one folder, {shown(only)}/, is no class"
                found.leave_out(below[only].images, "image", f"{why} of {shown(splits['train'].name)}/")
                continue
        _raise_if_none_directly(list(below.values()), f"{shown(folder.name)}/")
        _note_deeper(found, below.values(), f"{shown(folder.name)}/")
        _leave_out_empty(found, tree, (folder.name,), below)
        images = {name: one.images for name, one in below.items()}
        files[split] = _labelled(f"{shown(folder.name)}/", images)
        classes[split] = {same_text(name) for name in below}
    _raise_unless_several(classes["train"])
    for split in TEST_SPLITS:
        if split in classes:
            raise_unless_same(classes["train"], classes[split], splits["train"].name + "/", splits[split].name + "/")
    found.notes += alike_but_for_case(sorted(classes["train"]))
    names = {split: splits[split].name for split in files}
    return Layout("images", files, names, tuple(found.left_out), tuple(found.notes))


def raise_unless_same(train: Iterable[str], test: Iterable[str], train_name: str, test_name: str) -> None:
    """Raise LayoutError for a class that only one of two splits has."""
    train, test = set(train), set(test)
    for missing, there, lacking in ((train - test, train_name, test_name), (test - train, test_name, train_name)):
        if missing:
            which = ", ".join(repr(shown(name)) for name in sorted(missing)[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            classes = "class" if len(missing) == 1 else "classes"
            raise LayoutError(
                f"{classes} {which}{more} of {shown(there)} {'has' if len(missing) == 1 else 'have'} no images in "
                f"{shown(lacking)}; add some, or remove the {classes} from {shown(there)}"
            )


def _own_and_deeper(images: Sequence[Parts]) -> tuple[list[Parts], dict[str, list[Parts]]]:
    deeper: defaultdict[str, list[Parts]] = defaultdict(list)
    for parts in images:
        if len(parts) > 3:
            deeper[parts[2]].append(parts)
    return [parts for parts in images if len(parts) == 3], dict(deeper)


def _raise_if_none_directly(folders: Sequence[_Folder], where: str) -> None:
    """Raise LayoutError if no folder holds images itself, since its subfolders may be the classes."""
    if not any(folder.own for folder in folders):
        first = folders[0]
        inner = ", ".join(f"{shown(name)}/" for name in sorted(first.below)[:NAMED])
        raise LayoutError(
            f"{where}{shown(first.name)}/ holds no images itself, only folders of images ({inner}), so that it is not "
            "clear which folders are classes. Class folders lie directly below the data set's folder or below train/, "
            "validation/ or test/, and hold the images themselves; give the folder that holds them"
        )


def _note_deeper(found: _Found, folders: Iterable[_Folder], where: str = "") -> None:
    deeper = [(folder, parts) for folder in folders for files in folder.below.values() for parts in files]
    if deeper:
        folder, parts = deeper[0]
        found.notes.append(
            f"{_count(len(deeper), 'image')} in folders below their class folder "
            f"({shown('/'.join(parts))} counts as {shown(folder.name)!r})"
        )


def _leave_out_empty(found: _Found, tree: Tree, above: Parts, classes: Mapping[str, object]) -> None:
    empty = [
        parts
        for parts in tree.folders
        if parts[:-1] == above and parts[-1] not in classes and not parts[-1].startswith(".")
    ]
    found.leave_out(empty, "folder", "without images")


def _labelled(where: str, classes: Mapping[str, Sequence[Parts]]) -> list[File]:
    """The files with their classes, in the order of paths."""
    pair = twins(classes)
    if pair is not None:
        odd = ", or in bytes that are no UTF-8" if any(shown(name) != name for name in pair) else ""
        raise LayoutError(
            f"the folders {where}{pair[0]!a} and {where}{pair[1]!a} differ only in Unicode normalisation or in "
            f"blanks{odd}; join or rename them"
        )
    return sorted(
        (File(parts, same_text(name)) for name, images in classes.items() for parts in images),
        key=lambda file: file.parts,
    )


def _raise_unless_several(classes: Iterable[str]) -> None:
    names = sorted(classes)
    if len(names) < 2:
        raise LayoutError(
            f"needs at least two classes, got one ({shown(names[0])!r}); put the images of each class in a folder of "
            f"its own, or give the folder {shown(names[0])}/ if its folders are the classes"
        )


# Parquet files


def _of_parquet(found: _Found) -> Layout:
    by_split: defaultdict[Split | None, list[Parts]] = defaultdict(list)
    words: defaultdict[Split, set[str]] = defaultdict(set)
    for parts in sorted(found.parquet):
        split, word = _split_of(parts)
        by_split[split].append(parts)
        if split:
            words[split].add(word)
    without = by_split.pop(None, [])
    if not by_split:
        by_split["train"] = without
        found.notes.append("no Parquet file names a split, so all are training images")
    else:
        found.leave_out(without, "Parquet file", "whose name has no split, though other names have one")
    if "train" not in by_split:
        there = " and ".join(f"the {split} split" for split in by_split)
        example = _example(next(iter(by_split.values())))
        raise LayoutError(f"no Parquet file names the train split; found {there} ({example}); rename the files")
    for split, several in words.items():
        if len(several) > 1:
            raise LayoutError(f"Parquet files name the {split} split as {' and as '.join(sorted(several))}; keep one")
    for split, files in by_split.items():
        _raise_unless_whole(files)
        _raise_unless_one_place(split or "train", files)
    splits = {split: [File(parts) for parts in files] for split, files in by_split.items() if split}
    return Layout("parquet", splits, {}, tuple(found.left_out), tuple(found.notes))


def _split_of(parts: Parts) -> tuple[Split | None, str]:
    """The split named by a word of the file's name, else of the nearest folder's name; and the word."""
    named: tuple[Split, str] | None = None
    for name in (Path(parts[-1]).stem, *reversed(parts[:-1])):
        words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word in SPLITS]
        splits = {SPLITS[word] for word in words} | ({named[0]} if named else set())
        if len(splits) > 1:
            both = " and ".join(sorted(splits))
            raise LayoutError(f"{shown('/'.join(parts))} names more than one split, {both}; rename it")
        if words and named is None:
            named = SPLITS[words[0]], words[0]
    return named or (None, "")


def _raise_unless_whole(files: Sequence[Parts]) -> None:
    """Raise LayoutError if a file such as train-00001-of-00002 is missing, or exists in two versions."""
    shards: defaultdict[tuple[Parts, str], dict[tuple[int, int], Parts]] = defaultdict(dict)
    for parts in files:
        if not (match := SHARD.match(Path(parts[-1]).stem)):
            continue
        same = shards[parts[:-1], match["name"].casefold()]
        number, count = int(match["number"]), int(match["count"])
        if number >= count:
            raise LayoutError(
                f"{shown(parts[-1])} cannot be: files of {count} are numbered 0 to {count - 1}; rename or remove it"
            )
        other = same.get((number, count)) or next((one for (_, of), one in same.items() if of != count), None)
        if other is not None:
            raise LayoutError(
                f"{shown(other[-1])} and {shown(parts[-1])} are parts of two versions of one table; "
                "keep the files of one version"
            )
        same[number, count] = parts
    for there in shards.values():
        (_, count), example = next(iter(there.items()))
        missing = [number for number in range(count) if (number, count) not in there]
        if missing:
            raise LayoutError(
                f"{len(missing)} of {count} Parquet files are missing, such as {_numbered(example[-1], missing[0])}; "
                "add them, or rename the others"
            )


def _numbered(name: str, number: int) -> str:
    """The name of another part of the same table, without the hash, which differs per part."""
    match = SHARD.match(Path(name).stem)
    assert match is not None, "the name has a number"
    start, end = match.span("number")
    return shown(f"{name[:start]}{number:0{end - start}}{name[end : match.end('count')]}.parquet")


def _raise_unless_one_place(split: Split, files: Sequence[Parts]) -> None:
    """Raise LayoutError for Parquet files in several folders, which may be versions of the same images."""
    places = sorted({parts[:-1] for parts in files})
    if len(places) > 1:
        names = " and ".join(f"{shown('/'.join(place)) or '.'}/" for place in places[:2])
        raise LayoutError(
            f"Parquet files of the {split} split lie in {len(places)} folders ({names}), as versions of a data set do; "
            "keep one, or put the files in one folder"
        )


def _count(count: int, what: str) -> str:
    plural = "entries" if what == "entry" else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _example(files: Sequence[Parts]) -> str:
    names = [shown("/".join(parts)) for parts in files[:2]]
    return ", ".join(names) + (", …" if len(files) > 2 else "")


def each_path(folder: Path, files: Iterable[File]) -> Iterator[Path]:
    """The files' paths below the data set's folder."""
    return (folder.joinpath(*file.parts) for file in files)
