"""Where videos and annotations come from: the toy corpus, VERIFIED FIG files, or a folder of the user's own videos."""
