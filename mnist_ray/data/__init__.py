"""Bytes and arrays: storage, image files, datasets and the order of training samples."""
