"""Batch files, data sets, augmentation and image folders."""
