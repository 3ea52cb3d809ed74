"""Output formats of a measured table: cells, then Markdown, CSV, LaTeX, HTML, terminal."""
