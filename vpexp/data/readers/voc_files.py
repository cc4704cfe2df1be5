"""Where a Pascal VOC folder keeps its images, masks, lists and XML files."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from vpexp.data.annotations import read_number, read_whole
from vpexp.data.folder import Folder, compose
from vpexp.data.image_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, prefer_read
from vpexp.data.readers.json_files import read_text
from vpexp.data.readers.semantic import prefer_masks
from vpexp.data.skipped import AMBIGUOUS_MASK
from vpexp.errors import DataError

_IMAGES, _OBJECTS, _CLASSES = "JPEGImages", "SegmentationObject", "SegmentationClass"
_XML, _SETS = "Annotations", "ImageSets"
_SET_FOLDERS = ("Segmentation", "Main", "Layout", "Action", "")
_CLASS_LIST_LINE = re.compile(r"\s-?[01]$")
_MORE_FILES = re.compile(r"(\s+\S*[./]\S*)+$")
_ENDINGS = IMAGE_SUFFIXES | UNREAD_SUFFIXES | {".xml"}


@dataclass(frozen=True, slots=True)
class XmlObject:
    """An object of an XML file: its class and box, xyxy, ``[x0, y0, x1, y1)`` in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class XmlFile:
    """What an XML file says of its image.

    Attributes:
        objects: Those with a name and a box.
        bad: How many have a box and no name, or a box of no numbers.
        boxless: How many have a name and no box.
        size: (height, width) of the image, None if it says none.
    """

    objects: tuple[XmlObject, ...] = ()
    bad: int = 0
    boxless: int = 0
    size: tuple[int, int] | None = None


def describe_voc_folders(folder: Folder) -> list[str]:
    """List the folders that show that a data set is laid out as Pascal VOC: JPEGImages and the like."""
    if not find_voc_folders(folder):
        return []
    return folder.directories_named(_IMAGES, _OBJECTS, _CLASSES, _XML, _SETS)


def find_voc_folders(folder: Folder) -> list[str]:
    """List the folders laid out as Pascal VOC, as names relative to the root."""
    parents = {PurePosixPath(name).parent for name in folder.directories_named(_IMAGES, _OBJECTS, _CLASSES, _SETS)}
    return sorted("" if parent == PurePosixPath() else parent.as_posix() for parent in parents)


class VocFolder:
    """One folder laid out as Pascal VOC.

    Attributes:
        name: The folder's name relative to the data set's root, an empty string for the root itself.
        path: The folder.
        images: Image id -> image files of this name, whatever their ending.
        instance_masks: Image id -> mask file of instances.
        class_masks: Image id -> mask file of classes.
        xml_files: Image id -> XML file.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        """List the folder's files.

        Args:
            folder: The data set's folder.
            name: Name of the folder within it.
        """
        self.name = name
        self.path = folder.path(name) if name else folder.root
        self._folder = folder
        self.images = {stem: [folder.path(file) for file in files] for stem, files in self._list(_IMAGES).items()}
        self._ambiguous: dict[str, str] = {}
        self.instance_masks = self._list_masks(_OBJECTS)
        self.class_masks = self._list_masks(_CLASSES)
        self.xml_files = {
            stem: folder.path(file)
            for stem, files in self._list(_XML, images=False).items()
            for file in files
            if file.lower().endswith(".xml")
        }
        parts = (self.images, self.instance_masks, self.class_masks, self.xml_files)
        self._known = {image_id for part in parts for image_id in part}
        self._inner_folders = {PurePosixPath(image_id).parent for image_id in self._known}
        self._barred = {folder.path(file): reason for file, reason in folder.barred.items()}

    def find_to_read(self, name: str) -> Path | None:
        """Find a file of the folder that is about to be opened; errors as of `Folder.find_to_read`."""
        return self._folder.find_to_read(f"{self.name}/{name}".lstrip("/"))

    def find_barred(self, image_id: str) -> tuple[str, str] | None:
        """Find why an image's files are not to be used, and which: they are barred, or several masks; None if they may be."""
        if image_id in self._ambiguous:
            return AMBIGUOUS_MASK, self._ambiguous[image_id]
        single = (part.get(image_id) for part in (self.instance_masks, self.class_masks, self.xml_files))
        files = [*self.images.get(image_id, []), *filter(None, single)]
        return next(((self._barred[file], str(file)) for file in files if file in self._barred), None)

    def _find(self, part: str) -> str | None:
        """Find the folder of one part, in any case."""
        own = PurePosixPath(self.name)
        return next((d for d in self._folder.directories_named(part) if PurePosixPath(d).parent == own), None)

    def _list(self, part: str, *, images: bool = True) -> dict[str, list[str]]:
        """List the files of one part by their name without folder and ending."""
        directory = self._find(part)
        found: dict[str, list[str]] = {}
        for name in self._folder.files_in(directory, recursive=True) if directory else []:
            if not images or self._folder.has_image(name):
                stem = compose(PurePosixPath(name).relative_to(directory or "").with_suffix("").as_posix())
                found.setdefault(stem, []).append(name)
        return {stem: prefer_read(names) for stem, names in found.items()}

    def _list_masks(self, part: str) -> dict[str, Path]:
        """List the mask files of one part; old versions of labelme keep arrays there, and images beside it."""
        found = self._list(part)
        for stem, files in self._list(f"{part}PNG").items():
            read = prefer_read([*found.get(stem, []), *files])
            found[stem] = [name for name in read if name not in files] or read
        found = {stem: prefer_masks(files) for stem, files in found.items()}
        self._ambiguous |= {stem: " and ".join(files[:2]) for stem, files in found.items() if len(files) > 1}
        return {stem: self._folder.path(files[0]) for stem, files in found.items()}

    def list_sets(self) -> dict[str, list[str]]:
        """List the subsets: name -> image ids, from the first folder of ImageSets that has any.

        Without lists there is one subset, with an empty name, of all images that have a mask or an XML file.
        """
        directory = self._find(_SETS)
        for inner in _SET_FOLDERS if directory else ():
            sets = self._read_sets(f"{directory}/{inner}".rstrip("/"))
            if any(sets.values()):
                return sets
        annotated = {*self.instance_masks, *self.class_masks, *self.xml_files}
        return {"": sorted(annotated | set(self.images))}

    def _read_sets(self, directory: str) -> dict[str, list[str]]:
        """Read the lists of one folder, those of single classes left out."""
        sets = {}
        for name in self._folder.files_in(directory):
            if name.lower().endswith(".txt"):
                path = self._folder.find_to_read(name) or self._folder.path(name)
                text = compose(read_text(path, errors="replace"))
                lines = list(filter(None, map(self._clean, text.split("\n"))))
                stem = PurePosixPath(name).stem
                has_flags = all(_CLASS_LIST_LINE.search(line) for line in lines)
                if not ("_" in stem and lines and has_flags):
                    sets[stem] = list(dict.fromkeys(self._read_id(line, has_flags=has_flags) for line in lines))
        return sets

    def _clean(self, line: str) -> str:
        """Take comments and the space around a line away; a line that is an image's name stays as it is."""
        return line if self._is_known(line) else "" if line.lstrip().startswith("#") else line.strip()

    def _read_id(self, line: str, *, has_flags: bool) -> str:
        """Read the image id of a line, which may be a file name, and may have flags or further files behind it.

        Only the endings of images and folders that are none of the images' own are taken off a name: what is left of a
        missing image's name by more than that is the name of another image.
        """
        if self._is_known(line):
            return line
        first = line.rsplit(maxsplit=1)[0] if has_flags else line
        first = first.split(maxsplit=1)[0] if _MORE_FILES.search(first) else first
        path = PurePosixPath(first.strip("\"'").replace("\\", "/").lstrip("/"))
        inside = PurePosixPath(*path.parts[1:]) if path.parts[:1] == (_IMAGES,) else path
        if not inside.name:
            return line
        plain = inside.with_suffix("") if inside.suffix.lower() in _ENDINGS else inside
        names = [inside, plain] if plain.parent in self._inner_folders else [inside, plain, PurePosixPath(plain.name)]
        return next((name.as_posix() for name in names if self._is_known(name.as_posix())), line)

    def _is_known(self, image_id: str) -> bool:
        return image_id in self._known


def read_xml_file(path: Path) -> XmlFile:
    """Read an XML file.

    Raises:
        DataError: The file is damaged.
    """
    try:
        root = ET.parse(path).getroot()  # noqa: S314 (expat bounds the expansion of entities itself)
    except (OSError, ET.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise DataError(f"{path}: {error}") from error
    objects = []
    bad = boxless = 0
    for element in root.iterfind("object"):
        name = (element.findtext("name") or "").strip()
        sides = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        box = [number for side in sides if side and (number := read_number(side.strip())) is not None]
        if name and len(box) == len(sides):
            x0, y0, x1, y1 = box
            objects.append(XmlObject(name, (x0 - 1, y0 - 1, x1, y1)))  # pixels count from 1, both ends included
        else:
            has_box = element.find("bndbox") is not None
            bad += has_box
            boxless += bool(name) and not has_box
    height, width = (read_whole((root.findtext(f"size/{side}") or "").strip()) for side in ("height", "width"))
    size = (height, width) if height and width and min(height, width) > 0 else None
    return XmlFile(tuple(objects), bad, boxless, size)
