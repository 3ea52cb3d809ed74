"""The commands: each runs the job of a composed configuration."""
