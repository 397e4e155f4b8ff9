"""The task `classify-images`: one class for each of many images."""
