"""The suffixes of video files. They are not in `container`, so that a plan can list files without loading a decoder."""

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
