"""The one error of this package."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read as a PixArt model; the message names the file, and the key if there is one."""
