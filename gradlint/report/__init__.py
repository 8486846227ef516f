"""One file per output format. Each takes findings and gives text; none reads files or prints."""
