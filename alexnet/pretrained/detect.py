"""Detect the format of weights from the first bytes of a file or the names in a folder.

Source: safetensors (length of a JSON header), APPNOTE.TXT of zip, ModelProto of onnx.proto (field 1 is a number),
NetParameter of caffe.proto (field 1 is a string), Python's pickletools.
"""

import zipfile
from pathlib import Path

from alexnet.pretrained import upstream
from alexnet.pretrained.npy_files import DAMAGE, is_npz
from alexnet.pretrained.weights import WeightsError
from alexnet.run import checkpoint_format

FOLDERS = (                                      # format, pattern of file names, description
    ("native", checkpoint_format.NAME, "checkpoints of a run"),
    ("upstream", upstream.NAME, "theano_alexnet's arrays W_0_65.npy …"),
)
ASIDE = ("misc", "__MACOSX")                     # folders next to the arrays that contain no arrays
LONGEST_HEADER = 100_000_000                     # maximum size of a safetensors header, in bytes
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
SIGNATURES = (
    (b"PK", "upstream"),
    (b"\x08", "onnx"),                           # ModelProto's ir_version
    (b"\x0a", "caffe"), (b"\x12", "caffe"), (b"\xa2\x06", "caffe"),        # NetParameter's name, layers, layer
)


def detect_format(path: Path) -> tuple[str, Path]:
    """Return (format, location) of the weights at `path`.

    The format is native, upstream, caffe, npz, onnx or pytorch. The location is the file, the folder, or the only
    folder inside it if that one contains the weights.

    Raises:
        WeightsError: `path` contains no weights of a known format.
    """
    if path.is_dir():
        return in_folder(path)
    if not path.exists():
        raise WeightsError(f"there are no weights {path}")
    if not path.is_file():                       # reading from a pipe or device may block forever
        raise WeightsError(f"{path} is neither a file nor a folder")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    return format_of(head, path), path


def format_of(head: bytes, path: Path) -> str:
    """Return the format of a file from its first bytes; raises WeightsError."""
    if not head:
        raise WeightsError(f"{path} is empty")
    # safetensors first: the length of its header may look like the signature of another format
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return "native" if checkpoint_format.has_record(path) else "pytorch"
    if head.startswith(PICKLES) or (head.startswith(b"PK") and is_of_pytorch(path)):
        return "pytorch"
    if head.startswith(b"PK") and is_npz(path):
        return "npz"
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    raise WeightsError(
        f"{path} has no format that is read: a run's folder or safetensors, theano_alexnet's folder or zip of .npy "
        "files, a .caffemodel, ONNX, or PyTorch's .pth or safetensors; unpack other archives first"
    )


def is_of_pytorch(path: Path) -> bool:
    """Whether a zip is a file of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except DAMAGE:
        return False


def in_folder(path: Path) -> tuple[str, Path]:
    """Return (format, folder) of the weights in a folder, or in its only subfolder; raises WeightsError."""
    for folder in (path, *only_subfolder(path)):
        names = [file.name for file in files_in(folder)]
        kinds = [kind for kind, pattern, _ in FOLDERS if any(map(pattern.fullmatch, names))]
        if len(kinds) > 1:
            what = " and ".join(what for _, _, what in FOLDERS)
            raise WeightsError(f"{folder} holds {what}; name a checkpoint's file, or move the others elsewhere")
        if kinds:
            return kinds[0], folder
    lacks = " and without ".join(what for _, _, what in FOLDERS)
    raise WeightsError(f"{path} is a folder without {lacks}; weights of other kinds are named by their file")


def only_subfolder(path: Path) -> list[Path]:
    """Return the only subfolder of a folder as a list, else an empty list. Unpacking a zip often creates one."""
    folders = [each for each in files_in(path) if each.is_dir() and each.name[0] != "." and each.name not in ASIDE]
    return folders if len(folders) == 1 else []


def files_in(folder: Path) -> list[Path]:
    """Return the files and folders in a folder; raises WeightsError."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error.strerror}") from error
