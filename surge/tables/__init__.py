"""Tables of runs that somebody has already: read, understood, made tidy, and fitted together."""
