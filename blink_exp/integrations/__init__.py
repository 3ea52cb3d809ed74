"""Doors for other people's tools; none of them is needed by this project itself."""
