"""The task `segment`: a class for every pixel of an image, or voxel of a volume."""
