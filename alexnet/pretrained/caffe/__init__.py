"""Caffe's files: .caffemodel, and mean images in .binaryproto."""

from alexnet.pretrained.caffe.caffemodel import load

__all__ = ["load"]
