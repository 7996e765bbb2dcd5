"""Caffe's files: .caffemodel, .npz of its layers, and mean images in .binaryproto."""

from alexnet.pretrained.caffe.caffemodel import load
from alexnet.pretrained.caffe.npz import load as load_npz

__all__ = ["load", "load_npz"]
