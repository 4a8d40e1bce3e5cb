"""Where videos and annotations come from: the toy corpus, VERIFIED FIG files, a user's own folder."""
