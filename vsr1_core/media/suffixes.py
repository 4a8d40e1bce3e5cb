"""Which file names count as videos. Apart from `container`, so that a plan can list files without loading a decoder."""

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
