"""JPEG folders -> hickle batches, labels and mean image; also makes a synthetic data set for a first run.

batches              images of alexnet.data.image_listing -> batch files; parallel, resumable
manifest, journal    contents of a finished set; progress of an unfinished one
verify               compares a finished set with its manifest
remarks              what is left out, and what may not be meant
workers              a pool of processes that ends with its parent
figures, synthetic   the synthetic data set
"""
