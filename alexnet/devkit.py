"""The devkit's synset table as MATLAB wrote it, meta.mat; apart, because it is all that needs scipy."""

import scipy.io


def read_meta(path):
    """{ILSVRC id: (wnid, words)}.  Raises OSError, ValueError, KeyError, IndexError or TypeError for another file."""
    rows = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
    return {int(row[0]): (str(row[1]), str(row[2])) for row in rows}
