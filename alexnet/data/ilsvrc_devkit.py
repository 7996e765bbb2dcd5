"""The devkit's synset table in MATLAB format, meta.mat. A separate module because only this needs scipy."""

from pathlib import Path

import scipy.io


def read_meta(path: str | Path) -> dict[int, tuple[str, str]]:
    """Return {ILSVRC id: (wnid, words)} of a meta.mat.

    Raises:
        OSError, ValueError, KeyError, IndexError or TypeError: the file is not meta.mat.
    """
    rows = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
    return {int(row[0]): (str(row[1]), str(row[2])) for row in rows}
