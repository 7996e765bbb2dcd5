"""JPEG folders -> hickle batches, labels and mean image; and a made data set for a first run.

batches    images of alexnet.sources, read by alexnet.images -> batch files, in parallel, resumable
manifest, journal    what a finished set holds; what an unfinished one has so far
verify     a finished set against its manifest
workers    a pool of processes that ends with its parent
figures, synthetic   the made data set
"""
