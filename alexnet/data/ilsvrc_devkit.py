"""The devkit's synset table in MATLAB format, meta.mat. A separate module because only this needs scipy."""

import scipy.io


def read_meta(path):
    """Return {ILSVRC id: (wnid, words)}.

    Raises:
        OSError, ValueError, KeyError, IndexError or TypeError: the file is not meta.mat.
    """
    rows = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
    return {int(row[0]): (str(row[1]), str(row[2])) for row in rows}
