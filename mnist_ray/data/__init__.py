"""Bytes and arrays: storage, images, datasets and the order of samples."""
