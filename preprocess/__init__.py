"""JPEG folders -> hickle batches, labels and mean image; and a made data set for a first run.

sources    which images there are, and their labels
images     one image file -> 256 x 256 uint8
meta       the devkit's synset table, as MATLAB wrote it
batches    all of them -> batch files, in parallel, resumable
workers    a pool of processes that ends with its parent
figures, synthetic   the made data set
"""
