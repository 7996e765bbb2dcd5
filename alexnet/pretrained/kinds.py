"""Detect the format of a file or folder of weights from its content, and explain why others are refused.

Source: the first bytes of each format: safetensors (length of a JSON header), APPNOTE.TXT of zip, ModelProto of
onnx.proto (field 1 is a number), NetParameter of caffe.proto (field 1 is a string), Python's pickletools, HDF5,
NEP 1 (.npy).
"""

from alexnet.pretrained import upstream
from alexnet.pretrained.weights import TORCHVISION, WeightsError
from alexnet.run import checkpoint_format

READ = "a run's folder or safetensors, theano_alexnet's folder or zip of .npy files, a .caffemodel, or ONNX"
FOLDERS = (                                      # format, pattern of file names, description
    ("own", checkpoint_format.NAME, "checkpoints of a run"),
    ("upstream", upstream.NAME, "theano_alexnet's arrays W_0_65.npy …"),
)
ASIDE = ("misc", "__MACOSX")                     # folders next to the arrays that contain no arrays
LONGEST_HEADER = 100_000_000                     # maximum size of a safetensors header, in bytes
PICKLE = f"a pickle, which is never read, for it may run code; {TORCHVISION} anyway"
PACKED = "compressed: unpack it first"
REFUSED = (                                      # offset, bytes at the offset, description of the file
    (0, b"\x80\x02", PICKLE), (0, b"\x80\x03", PICKLE), (0, b"\x80\x04", PICKLE), (0, b"\x80\x05", PICKLE),
    (257, b"ustar", f"a tar archive: unpack it first, if it is no PyTorch file of old, which is {PICKLE}"),
    (0, b"\x89HDF\r\n\x1a\n", f"HDF5, as hickle's and Keras' files are; what is read is {READ}"),
    (0, b"\x93NUMPY", "one array; theano_alexnet's weights are a folder of such files, so give that"),
    (0, b"\x1f\x8b", PACKED), (0, b"BZh", PACKED), (0, b"\xfd7zXZ", PACKED),
    (0, b'name: "', "a text, such as a .prototxt, which has no weights; give the .caffemodel"),
)


def found(path):
    """Return (format, location) of the weights at `path`.

    The format is a name in alexnet.pretrained.FORMATS. The location is the file, the folder, or the only folder inside
    it if that one contains the weights.

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
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    return kind_of_bytes(head, path), path


def kind_of_bytes(head, path):
    """Return the format of a file from `head`, its first 512 bytes; raises WeightsError."""
    if not head:
        raise WeightsError(f"{path} is empty")
    # safetensors first: the length of its header may look like the signature of another format
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return "own"
    for offset, magic, what in REFUSED:
        if head[offset:].startswith(magic):
            raise WeightsError(f"{path} is {what}")
    if head.startswith(b"PK"):
        return "upstream"
    if head[:1] == b"\x08":                      # ModelProto's ir_version
        return "onnx"
    if head[:1] in (b"\x0a", b"\x12") or head[:2] == b"\xa2\x06":     # NetParameter's name, layers, or layer field
        return "caffe"
    raise WeightsError(f"{path} is none of the weights that are read: {READ}")


def in_folder(path):
    """Return (format, folder) of the weights in a folder, or in its only subfolder; raises WeightsError."""
    for folder in (path, *inner(path)):
        names = [file.name for file in files_in(folder)]
        kinds = [kind for kind, pattern, _ in FOLDERS if any(map(pattern.fullmatch, names))]
        if len(kinds) > 1:
            what = " and ".join(what for _, _, what in FOLDERS)
            raise WeightsError(f"{folder} holds {what}; name a checkpoint's file, or move the others elsewhere")
        if kinds:
            return kinds[0], folder
    lacks = " and without ".join(what for _, _, what in FOLDERS)
    raise WeightsError(f"{path} is a folder without {lacks}; weights of other kinds are named by their file")


def inner(path):
    """Return the only subfolder of a folder as a list, else an empty list. Unpacking a zip often creates one."""
    folders = [each for each in files_in(path) if each.is_dir() and each.name[0] != "." and each.name not in ASIDE]
    return folders if len(folders) == 1 else []


def files_in(folder):
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error.strerror}") from error
