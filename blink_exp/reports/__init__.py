"""What a measured table is turned into: cells, then Markdown, CSV, LaTeX, a page, the terminal."""
